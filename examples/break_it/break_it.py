"""Kill every part of a running mesh, one after the other, and show what a stream notices.

    .venv/bin/expertmesh serve                            # in one terminal, or `make serve`
    .venv/bin/python examples/break_it/break_it.py        # in another, on the same machine

The gateway and what Ray itself consists of are spared: the only proxy's loss would be noticed.
"""

import argparse
import json
import os
import signal
import sys
import time
from threading import Thread
from typing import Any

import httpx

PROMPT = "And Jesus said unto them, "
TOKENS = 400
UNDER_WAY = 20
"""Pieces that have come before anything is killed."""
REPLACED_TIMEOUT_S = 300.0
SPARED = ("gateway",)


class Stream:
    """One greedy answer, and when each piece of it came."""

    def __init__(self, url: str, model: str) -> None:
        self._url, self._model = url, model
        self.text, self.error = "", ""
        self.arrivals_s: list[float] = []
        self._thread = Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        body = {
            "model": self._model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0,
            "ignore_eos": True, "stream": True,
        }  # fmt: skip
        try:
            with httpx.stream(
                "POST", f"{self._url}/v1/completions", json=body, timeout=300
            ) as said:
                if said.status_code != 200:
                    self.error = said.read().decode()
                for line in said.iter_lines():
                    self._take(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            self.error = f"{type(error).__name__}: {error}"

    def _take(self, event: str) -> None:
        if not event or event == "[DONE]":
            return
        said = json.loads(event)
        if "error" in said:
            self.error = said["error"]["message"]
            return
        self.arrivals_s.append(time.monotonic())
        self.text += said["choices"][0]["text"]

    def wait_under_way(self) -> None:
        while len(self.arrivals_s) < UNDER_WAY and self._thread.is_alive():
            time.sleep(0.01)

    def wait(self) -> None:
        self._thread.join()

    @property
    def pause_s(self) -> float:
        """Longest time between two pieces."""
        pairs = zip(self.arrivals_s, self.arrivals_s[1:], strict=False)
        return max((after - before for before, after in pairs), default=0.0)


def components(url: str) -> dict[str, dict[str, Any]]:
    """By id; empty while the controller is away."""
    answer = httpx.get(f"{url}/api/v1/status", timeout=30)
    return {c["id"]: c for c in answer.json()["components"]} if answer.is_success else {}


def wait_replaced(url: str, id: str, pid: int) -> float:
    """Seconds until another process is ready in that place, and everything else is too."""
    began_s = time.monotonic()
    while time.monotonic() < began_s + REPLACED_TIMEOUT_S:
        now = components(url)
        ready = bool(now) and all(c["state"] == "ready" for c in now.values())
        if ready and now[id]["pid"] != pid:
            return time.monotonic() - began_s
        time.sleep(0.2)
    sys.exit(f"{id} was not replaced within {REPLACED_TIMEOUT_S:g} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--part", action="append", metavar="ID", help="only this; may be repeated")
    arguments = parser.parse_args()
    url, model = arguments.url, arguments.model
    undisturbed = Stream(url, model)
    undisturbed.wait()
    print(f"undisturbed: {len(undisturbed.arrivals_s)} pieces, "
          f"longest pause {undisturbed.pause_s:.2f} s\n")  # fmt: skip
    print(f"{'SIGKILL to':<16}{'the client saw':<34}{'longest pause':>14}{'replaced after':>16}")
    for id, component in components(url).items():
        if id in SPARED or id not in (arguments.part or [id]):
            continue
        stream = Stream(url, model)
        stream.wait_under_way()
        os.kill(component["pid"], signal.SIGKILL)
        stream.wait()
        saw = stream.error or ("the same text" if stream.text == undisturbed.text else "other text")
        replaced_s = wait_replaced(url, id, component["pid"])
        print(f"{id:<16}{saw[:32]:<34}{stream.pause_s:>12.2f} s{replaced_s:>14.1f} s", flush=True)


if __name__ == "__main__":
    main()
