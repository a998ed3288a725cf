"""Streams of tokens side by side, and when each token came."""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.e2e.mesh_process import wait_until
from tests.nodes.meshes import MODEL
from tests.nodes.network import Node

PROMPTS = (
    "And Jesus said unto them, ",
    "    def __init__(self, ",
    "In the beginning ",
    "The king of ",
    "import os\nimport ",
    "And it came to pass ",
    "    return self.",
    "Blessed are ",
)
READ_TIMEOUT_S = 120.0
UNDER_WAY = 8
"""Pieces of each stream that have come before anything is done to the mesh."""


@dataclass(slots=True)
class Stream:
    """One answer, as it came. arrivals_s: on the monotonic clock; error: "" if it ended well."""

    prompt: str
    text: str = ""
    error: str = ""
    arrivals_s: list[float] = field(default_factory=list)

    def gap_s(self, since_s: float = 0.0) -> float:
        """Longest time between one piece and the next that came after `since_s`."""
        pairs = zip(self.arrivals_s, self.arrivals_s[1:], strict=False)
        return max((after - before for before, after in pairs if after > since_s), default=0.0)

    def run(self, url: str, tokens: int) -> None:
        """Ask for `tokens` greedy tokens; a failure is kept in `error`."""
        body = {
            "model": MODEL,
            "prompt": self.prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        try:
            with (
                httpx.Client(timeout=READ_TIMEOUT_S, trust_env=False) as client,
                client.stream("POST", f"{url}/v1/completions", json=body) as answer,
            ):
                if answer.status_code != 200:
                    self.error = f"status {answer.status_code}: {answer.read().decode()}"
                    return
                for line in answer.iter_lines():
                    self._take(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            self.error = f"{type(error).__name__}: {error}"

    def _take(self, event: str) -> None:
        if not event or event == "[DONE]":
            return
        said = json.loads(event)
        if "error" in said:
            self.error = str(said["error"])
            return
        self.arrivals_s.append(time.monotonic())
        self.text += said["choices"][0]["text"]


@contextmanager
def streaming(
    url: str, prompts: Sequence[str], tokens: int, node: Node | None = None
) -> Iterator[list[Stream]]:
    """Streams to a client (on `node`), all under way in the `with` block, ended after it."""
    streams = [Stream(prompt) for prompt in prompts]
    count = len(streams)
    with node.threads(count) if node else ThreadPoolExecutor(count) as threads:
        for stream in streams:
            threads.submit(stream.run, url, tokens)
        wait_until(
            lambda: all(len(s.arrivals_s) >= UNDER_WAY or s.error for s in streams),
            READ_TIMEOUT_S,
            "streams under way",
        )
        yield streams
