"""Compare an engine whose experts live in a mesh with monolithic vLLM on the same weights.

Two numbers matter: where greedy decoding first takes another token, and how far the probabilities
of given tokens are apart. Different summing order makes bf16 results differ in the last bit, so a
first divergence is allowed only where the two best tokens were nearly equal (a near-tie).
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from actors.dispatch.subscription import ADDRESS_VARIABLE, SECRET_VARIABLE
from actors.vllm_plugin.compile_cache import CACHE_VARIABLE
from actors.wire.frame import RowCoding
from benchmarks.harness.local_mesh import SECRET, LocalMesh, ShardShape

NEAR_TIE = 0.05
"""Largest top-2 logprob gap at which another choice counts as a tie."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One mesh against monolithic vLLM.

    prompts: compared; equal: with all tokens equal; worst_gap: largest top-2 gap at a first
    divergence (0.0 without one); mean_, median_, max_delta: |difference of logprob| under teacher
    forcing; own, whole: the logprobs themselves, of the mesh and of monolithic vLLM.
    """

    name: str
    prompts: int
    equal: int
    worst_gap: float
    mean_delta: float
    median_delta: float
    max_delta: float
    own: np.ndarray = field(repr=False, compare=False)
    whole: np.ndarray = field(repr=False, compare=False)

    @property
    def only_near_ties(self) -> bool:
        return self.worst_gap < NEAR_TIE


@dataclass(frozen=True, slots=True)
class MeshShape:
    """One mesh to compare: its shards, router mode, whether shards are reached over TCP, and how
    rows travel then. Only BF16 promises the same answers."""

    name: str
    shards: tuple[ShardShape, ...]
    mode: str = "embedded"
    tcp: bool = False
    rows: RowCoding = RowCoding.BF16


def run_engine(
    request: dict[str, Any], address: str | None, runs: dict[str, Callable[[], object]]
) -> dict[str, Any]:
    """`benchmarks.harness.generate` in a process of its own; runs: what to do before each run.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked, answered, said = folder / "request.json", folder / "answer.json", folder / "log"
        asked.write_text(json.dumps(request | {"address": address, "runs": list(runs)}))
        variables = {"TMPDIR": name}  # vLLM leaves sockets and files there
        if not request.get("flags", {}).get("enforce_eager", True):
            # What is compiled for this checkpoint goes with it.
            variables |= {"VLLM_CACHE_ROOT": name, CACHE_VARIABLE: name}
        if address:
            variables |= {ADDRESS_VARIABLE: address, SECRET_VARIABLE: SECRET.decode()}
        with (
            said.open("w") as log,
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.harness.generate", str(asked), str(answered)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | variables,
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("serve "):
                    runs[line.removeprefix("serve ").strip()]()
                    process.stdin.write("go\n")
                    process.stdin.flush()
        if process.returncode or not answered.exists():
            raise RuntimeError(f"the engine failed:\n{said.read_text()[-6000:]}")
        result: dict[str, Any] = json.loads(answered.read_text())
        return result


@dataclass(frozen=True, slots=True)
class Compared:
    """sizes: parameter bytes of monolithic vLLM and of the mesh's engine; sequences: token ids that
    all were forced to, prompts with monolithic vLLM's answers; taken: share of the drafted tokens
    that monolithic vLLM and the mesh's engine took, in all of its runs, 0.0 without drafts."""

    meshes: list[Comparison]
    sizes: dict[str, int]
    taken: dict[str, float]
    sequences: list[list[int]]


def compare(
    request: dict[str, Any], meshes: Sequence[MeshShape]
) -> tuple[list[Comparison], dict[str, int]]:
    """Monolithic vLLM once, and each mesh. Returns comparisons and parameter bytes of both."""
    compared = compare_weights(request, meshes)
    return compared.meshes, compared.sizes


def compare_weights(
    request: dict[str, Any],
    meshes: Sequence[MeshShape],
    weights: Path | None = None,
    whole_request: dict[str, Any] | None = None,
) -> Compared:
    """Monolithic vLLM once, and each mesh.

    request: model, prompts, max_tokens, threads and flags of `benchmarks.harness.generate`.
    weights: a checkpoint that shards load in the model's place. whole_request: what monolithic vLLM
    is asked instead, such as a twin of the model in a format that it has kernels for.
    """
    with (
        tempfile.TemporaryDirectory(prefix="xm") as folder,
        LocalMesh(
            Path(request["model"]), Path(folder), weights, predictors=predicts(request)
        ) as mesh,
        ThreadPoolExecutor(1) as beside,
    ):
        forced_file = Path(folder) / "forced.json"
        # Beside each other: most of an engine's start is waiting.
        running = beside.submit(run_whole, whole_request or request, forced_file)
        remote = run_engine(
            request | {"forced_file": str(forced_file)},
            mesh.address,
            {m.name: partial(mesh.serve, m.shards, m.mode, m.tcp, m.rows) for m in meshes},
        )
        whole = running.result()
        sequences = json.loads(forced_file.read_text())
    reference = whole["runs"]["monolithic"]
    comparisons = [compare_runs(name, reference, run) for name, run in remote["runs"].items()]
    sizes = {"monolithic": whole["parameter_bytes"], "mesh": remote["parameter_bytes"]}
    taken = {"monolithic": taken_of(whole), "mesh": taken_of(remote)}
    return Compared(comparisons, sizes, taken, sequences)


def predicts(request: dict[str, Any]) -> bool:
    """Whether its engines draft with the model's layers of multi-token prediction."""
    return bool(request.get("flags", {}).get("speculative_config", {}).get("method") == "mtp")


def taken_of(answer: dict[str, Any]) -> float:
    return float(answer["accepted"] / max(answer["drafted"], 1))


def run_whole(request: dict[str, Any], forced_file: Path) -> dict[str, Any]:
    """Monolithic vLLM; the mesh's engine, which waits for the file, scores its answers."""
    forced = None
    try:
        whole = run_engine(request, None, {"monolithic": lambda: None})
        tokens = whole["runs"]["monolithic"]["tokens"]
        forced = [
            prompt + answer for prompt, answer in zip(request["prompts"], tokens, strict=True)
        ]
        return whole
    finally:
        unfinished = forced_file.with_suffix(".part")
        unfinished.write_text(json.dumps(forced))
        unfinished.rename(forced_file)


def compare_runs(name: str, reference: dict[str, Any], run: dict[str, Any]) -> Comparison:
    """The figures of one run against the monolithic one."""
    gaps = []
    for tokens, own, gap in zip(reference["tokens"], run["tokens"], reference["gaps"], strict=True):
        differ = np.flatnonzero(np.array(tokens) != np.array(own))
        if differ.size:
            gaps.append(gap[int(differ[0])])
    whole, forced = np.concatenate(reference["forced"]), np.concatenate(run["forced"])
    delta = np.abs(whole - forced)
    return Comparison(
        name,
        len(reference["tokens"]),
        len(reference["tokens"]) - len(gaps),
        max(gaps, default=0.0),
        float(delta.mean()),
        float(np.median(delta)),
        float(delta.max()),
        forced,
        whole,
    )
