"""Compare an engine whose experts live in a mesh with monolithic vLLM on the same weights.

Two numbers matter: where greedy decoding first takes another token, and how far the probabilities
of given tokens are apart. Different summing order makes bf16 results differ in the last bit, so a
first divergence is allowed only where the two best tokens were nearly equal (a near-tie).
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NEAR_TIE = 0.05
"""Largest top-2 logprob gap at which another choice counts as a tie."""
TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Comparison:
    """One mesh against monolithic vLLM.

    prompts: compared; equal: with all tokens equal; worst_gap: largest top-2 gap at a first
    divergence (0.0 without one); mean_delta, max_delta: |difference of logprob| under teacher
    forcing.
    """

    name: str
    prompts: int
    equal: int
    worst_gap: float
    mean_delta: float
    max_delta: float

    @property
    def only_near_ties(self) -> bool:
        return self.worst_gap < NEAR_TIE


def run_engine(request: dict[str, Any]) -> dict[str, Any]:
    """`benchmarks.harness.generate` in a process of its own.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(request))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.harness.generate", str(asked), str(answered)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode or not answered.exists():
            raise RuntimeError(f"engine failed:\n{(done.stdout + done.stderr)[-6000:]}")
        result: dict[str, Any] = json.loads(answered.read_text())
        return result


def compare(
    request: dict[str, Any], meshes: list[dict[str, Any]]
) -> tuple[list[Comparison], dict[str, int]]:
    """Monolithic vLLM once, then each mesh. Returns comparisons and parameter bytes of both."""
    whole = run_engine(request)
    reference = whole["runs"]["monolithic"]
    sequences = [
        prompt + tokens
        for prompt, tokens in zip(request["prompts"], reference["tokens"], strict=True)
    ]
    remote = run_engine(request | {"forced": sequences, "meshes": meshes})
    comparisons = [compare_runs(name, reference, run) for name, run in remote["runs"].items()]
    return comparisons, {
        "monolithic": whole["parameter_bytes"],
        "mesh": remote["parameter_bytes"],
    }


def compare_runs(name: str, reference: dict[str, Any], run: dict[str, Any]) -> Comparison:
    """The figures of one run against the monolithic one."""
    gaps = []
    for tokens, own, gap in zip(reference["tokens"], run["tokens"], reference["gaps"], strict=True):
        differ = np.flatnonzero(np.array(tokens) != np.array(own))
        if differ.size:
            gaps.append(gap[int(differ[0])])
    delta = np.abs(np.concatenate(reference["forced"]) - np.concatenate(run["forced"]))
    return Comparison(
        name,
        len(reference["tokens"]),
        len(reference["tokens"]) - len(gaps),
        max(gaps, default=0.0),
        float(delta.mean()),
        float(delta.max()),
    )
