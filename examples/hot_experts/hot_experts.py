"""Traffic turns from English to code to Chinese poems, and other experts become hot.

    .venv/bin/expertmesh serve examples/hot_experts/mesh.yaml   # in one terminal
    .venv/bin/python examples/hot_experts/hot_experts.py        # in another; look at the page
    .venv/bin/python examples/hot_experts/hot_experts.py --alerts   # with Prometheus and our rules

Prompts are beginnings of texts that the demo model has not seen (`examples/demo/prompts.jsonl`).
After each change of traffic the script prints how even the shards' work is, asks for a rebalance,
and prints how even it is then. It ends with how far apart the loads of the kinds of text are. With
`--alerts` the rebalance is asked for when the imbalance alert fires (`alerts`).
"""

import argparse
import itertools
import json
import random
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import numpy as np
from alerts import FASTER, IMBALANCE, Alerts, watching

PROMPTS = Path(__file__).parents[1] / "demo" / "prompts.jsonl"
NAMES = {"en": "English", "py": "code", "zh": "Chinese poems"}
TOKENS = 160
WARM_UP_S = 4.0
"""The streams of the traffic before have ended by then."""
ALERT_S = 90.0
"""How long the alert is waited for, to fire and to be over."""


class Traffic:
    """Streams of one kind of text until it is stopped."""

    def __init__(self, url: str, model: str, prompts: list[str], streams: int) -> None:
        self._url, self._model, self._prompts = url, model, prompts
        self._ended = Event()
        self.errors: list[str] = []
        self._threads = [Thread(target=self._run, args=(seed,)) for seed in range(streams)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        order = random.Random(seed)
        with httpx.Client(base_url=self._url, timeout=120) as client:
            while not self._ended.is_set():
                body = {
                    "model": self._model, "prompt": order.choice(self._prompts),
                    "max_tokens": TOKENS, "temperature": 0.7, "ignore_eos": True,
                }  # fmt: skip
                try:
                    client.post("/v1/completions", json=body).raise_for_status()
                except httpx.HTTPError as error:
                    self.errors.append(str(error))
                    self._ended.wait(1.0)


class Mesh:
    """What is asked of the gateway."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=150)

    def get(self, path: str) -> dict[str, Any]:
        answer = self._client.get(path)
        answer.raise_for_status()
        return dict(answer.json())

    def load(self) -> dict[str, np.ndarray]:
        """By shard [layers, experts] assignments since the controller started."""
        by_shard = self.get("/api/v1/expert-load")["by_shard"]
        return {shard: np.array(counts) for shard, counts in by_shard.items()}

    def speeds(self) -> dict[str, float]:
        components = self.get("/api/v1/status")["components"]
        return {c["id"]: c["speed"] or 1.0 for c in components if c["kind"] == "shard"}

    def tokens(self) -> float:
        return float(self.get("/api/v1/telemetry")["points"][-1]["generated"])

    def rebalance(self) -> tuple[float, str]:
        """(predicted gain, what the control plane answers); returns when nothing moves any more."""
        before = self.get("/api/v1/cluster")["transactions"]
        answer = self._client.post("/api/v1/rebalance", json={})
        said = answer.json()
        if not answer.is_success:
            sys.exit(f"the rebalance was refused: {said['error']['message']}")
        gain = 0.0
        while True:
            cluster = self.get("/api/v1/cluster")
            if (change := cluster["transaction"]) is not None:
                gain = change["gain"]
            elif cluster["planning"] is None:
                break
            time.sleep(0.05)
        if cluster["transactions"] > before and not gain:
            events = self.get("/api/v1/transactions")["transactions"][0]["events"]
            gain = events[0]["figures"].get("gain", 0.0)
        return gain, str(said["text"])


def grown(before: dict[str, np.ndarray], now: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What was computed meanwhile."""
    return {shard: counts - before.get(shard, 0) for shard, counts in now.items()}


def balancedness(load: dict[str, np.ndarray], speeds: dict[str, float]) -> float:
    """Mean over largest time of the shards, as the page has it, over all of `load`."""
    rows = np.stack([load[shard].sum(axis=1) for shard in load])
    speed = np.array([speeds[shard] for shard in load])
    slowest = (rows / speed[:, None]).max(axis=0).sum()
    return float(rows.sum() / speed.sum() / slowest)


def prompts_of(path: Path) -> dict[str, list[str]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {domain: [p["prompt"] for p in lines if p["domain"] == domain] for domain in NAMES}


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[L] sum of |differences| of the experts' shares: 0 where the same are hot, at most 2."""
    shares = [load / load.sum(axis=1, keepdims=True) for load in (one, other)]
    return np.asarray(np.abs(shares[0] - shares[1]).sum(axis=1))


@dataclass(frozen=True, slots=True)
class Turn:
    """One kind of text: load before the rebalance, balancedness before and after it."""

    load: np.ndarray
    tokens_per_s: float
    before: float
    after: float
    gain: float
    said: str
    alert: str


def turn(mesh: Mesh, traffic: Traffic, seconds: float, watch: Alerts | None) -> Turn:
    """Measure, rebalance (when the alert has fired, if it is watched), measure again."""
    with traffic:
        time.sleep(WARM_UP_S)
        began, tokens = mesh.load(), mesh.tokens()
        time.sleep(seconds)
        load = grown(began, mesh.load())
        rate = (mesh.tokens() - tokens) / seconds
        before = balancedness(load, mesh.speeds())
        fired = watch.wait(True, ALERT_S) if watch else ""
        gain, said = mesh.rebalance()
        began = mesh.load()
        time.sleep(seconds)
        after = balancedness(grown(began, mesh.load()), mesh.speeds())
        over = watch.wait(False, ALERT_S) if watch and fired else ""
    if traffic.errors:
        sys.exit(f"{len(traffic.errors)} requests failed: {traffic.errors[0]}")
    alert = f"{IMBALANCE} fired {fired}, {f'over {over}' if over else 'goes on'}"
    return Turn(
        sum(load.values()), rate, before, after, gain, said, alert if fired else f"no {IMBALANCE}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seconds", type=float, default=20.0, help="measured, twice")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--only", choices=sorted(NAMES), help="one kind of text, for ever")
    parser.add_argument("--alerts", action="store_true", help="with Prometheus and our rules")
    arguments = parser.parse_args()
    mesh = Mesh(arguments.url)
    loads: dict[str, np.ndarray] = {}
    with watching(arguments.url) if arguments.alerts else nullcontext() as watch:
        if watch:
            print(f"dashboards/prometheus/rules.yml, all its times divided by {FASTER}")
        print(f"{'traffic':<15}{'tokens/s':>9}{'balancedness':>14}{'after':>7}  experts' time")
        for domain, prompts in prompts_of(PROMPTS).items():
            if arguments.only not in (None, domain):
                continue
            traffic = Traffic(arguments.url, arguments.model, prompts, arguments.streams)
            seen = turn(mesh, traffic, arguments.seconds, watch)
            loads[domain] = seen.load
            show(NAMES[domain], seen, with_alert=bool(watch))
    if len(loads) > 1:
        show_distances(loads)


def show(name: str, seen: Turn, with_alert: bool) -> None:
    saved = seen.before / seen.after - 1
    gained = f"{-seen.gain:+.0%} predicted, {saved:+.0%} seen" if seen.gain else "kept"
    print(
        f"{name:<15}{seen.tokens_per_s:>9.0f}{seen.before:>14.2f}{seen.after:>7.2f}  {gained}",
        flush=True,
    )
    if with_alert:
        print(f"    {seen.alert}")
    print(f"    {seen.said}", flush=True)


def show_distances(loads: dict[str, np.ndarray]) -> None:
    print("\nL1 distance of the experts' shares of load, by layer (0: the same, 2: none in common)")
    for one, other in itertools.combinations(loads, 2):
        apart = distance(loads[one], loads[other])
        figures = " ".join(f"{value:.2f}" for value in apart)
        print(f"{NAMES[one] + ' / ' + NAMES[other]:<24}{figures}")


if __name__ == "__main__":
    main()
