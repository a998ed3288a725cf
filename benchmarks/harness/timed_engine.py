"""vLLM engines in processes of their own that generate on demand and say when tokens came."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

from actors.dispatch.subscription import ADDRESS_VARIABLE, SECRET_VARIABLE
from actors.process import PASSIVE_THREADS, thread_environment
from benchmarks.harness.engine_process import ANSWER, READY
from benchmarks.harness.generate import ENVIRONMENT
from benchmarks.harness.local_mesh import SECRET

VOCABULARY = 200  # prompts are random; any model has that many tokens


@dataclass(frozen=True, slots=True)
class Workload:
    """`batch` requests at once, each with a random prompt, greedy, no early end."""

    batch: int
    prompt_tokens: int
    new_tokens: int

    def prompts(self, seed: int = 0) -> list[list[int]]:
        random = np.random.default_rng(seed)
        ids = random.integers(5, VOCABULARY, (self.batch, self.prompt_tokens))
        return [[int(token) for token in prompt] for prompt in ids]

    def order(self, seed: int) -> dict[str, Any]:
        """What `engine_process.generate` takes."""
        return {"prompts": self.prompts(seed), "new_tokens": self.new_tokens}


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests of given lengths, `at_once` of them under way until none is left."""

    prompt_tokens: tuple[int, ...]
    new_tokens: tuple[int, ...]
    at_once: int

    def order(self, seed: int) -> dict[str, Any]:
        """What `engine_process.generate` takes."""
        random = np.random.default_rng(seed)
        ids = [random.integers(5, VOCABULARY, length).tolist() for length in self.prompt_tokens]
        return {"prompts": ids, "new_tokens": list(self.new_tokens), "at_once": self.at_once}


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: start and end (system-wide clock), first token and gaps of every request; came_s:
    when each token came."""

    start_s: float
    end_s: float
    first_s: list[float]
    gaps_s: list[float]
    tokens: list[list[int]]
    came_s: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return sum(len(tokens) for tokens in self.tokens) / (self.end_s - self.start_s)


class TimedEngine:
    """One engine. address: of a mesh, None for monolithic vLLM; spinning: OpenMP's own default;
    compiled: with torch.compile; here: see `engine_process`; more: further environment.
    Huge pages are given to all."""

    def __init__(
        self,
        model: Path,
        threads: int,
        address: str | None,
        spinning: bool = False,
        compiled: bool = False,
        here: str = "",
        more: Mapping[str, str] | None = None,
    ) -> None:
        variables = ENVIRONMENT | thread_environment(threads)
        if spinning:
            variables = {k: v for k, v in variables.items() if k not in PASSIVE_THREADS}
        if compiled:
            variables["TORCH_COMPILE_DISABLE"] = "0"
        variables |= more or {}
        if address:
            variables |= {ADDRESS_VARIABLE: address, SECRET_VARIABLE: SECRET.decode()}
        # vLLM leaves files there when its process is ended.
        self._scratch = tempfile.TemporaryDirectory()
        variables |= {"TMPDIR": self._scratch.name}
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the engine
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.harness.engine_process", str(model)]
            + ["compiled"] * compiled
            + [here] * bool(here),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=os.environ | variables,
        )
        self.pid = self._process.pid

    def wait_ready(self) -> Self:
        self._line(READY)
        return self

    def start(self, workload: Workload | Stream, seed: int = 0) -> None:
        """Begin to generate; `finish` returns what came of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(workload.order(seed)) + "\n")
        self._process.stdin.flush()

    def finish(self) -> Timing:
        return Timing(**json.loads(self._line(ANSWER)))

    def run(self, workload: Workload | Stream, seed: int = 0) -> Timing:
        self.start(workload, seed)
        return self.finish()

    def _line(self, beginning: str) -> str:
        """The rest of the next line that begins so; whatever else vLLM prints is passed over."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(beginning):
                return line.removeprefix(beginning)
        self._said.seek(0)
        raise RuntimeError(f"the engine failed:\n{self._said.read()[-6000:]}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
        self._said.close()
        self._scratch.cleanup()


def proportional_bytes(pids: list[int]) -> int:
    """Memory of processes, pages they share counted once (PSS)."""
    return sum(int(psutil.Process(pid).memory_full_info().pss) for pid in pids)
