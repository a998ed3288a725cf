"""What kinds of traffic ask of the experts of a running mesh, against what its shards counted."""

import json
import time
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.e2e.mesh_process import MeshProcess, run_cli, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.vllm]

LETTERS, DIGITS = "letters", "digits"
CHARACTERS = {LETTERS: "abcdefg", DIGITS: "0123456789", "": "xyz"}
REQUESTS, TOKENS = 8, 64
ROUNDED = 0.01
"""Load halves in ten minutes, and shares are told with six digits."""
WINDOW_S = 1.1
"""After which the engine decides anew which of its steps are counted."""

COLLECTED_S = 2.0
"""After which the controller has asked the shards for what they counted."""

Shares = NDArray[np.float64]


def ask(mesh: MeshProcess, kind: str, number: int) -> None:
    """One step: a prompt that nobody sent before, and the token after it."""
    text = CHARACTERS[kind]
    prompt = "".join(text[(number * 3 + i * (number + 1)) % len(text)] for i in range(TOKENS))
    answer = httpx.post(
        f"{mesh.url}/v1/completions",
        json={"model": "tiny", "prompt": prompt, "max_tokens": 1, "temperature": 0},
        headers={"X-ExpertMesh-Traffic": kind} if kind else {},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text


def load(mesh: MeshProcess, query: str = "") -> dict[str, Any]:
    answer: dict[str, Any] = mesh.get(f"/api/v1/load{query}").json()
    return answer


def told_of(mesh: MeshProcess, kind: str) -> int:
    told = load(mesh)["traffic"]
    return sum(t["tokens"] for t in told if (t["kind"], t["content"]) == (kind, "text"))


def run_kind(mesh: MeshProcess, kind: str) -> Shares:
    """Shares of what the shards counted meanwhile."""
    time.sleep(COLLECTED_S)
    before = np.array(load(mesh)["counts"], float)
    for number in range(REQUESTS):
        ask(mesh, kind, number)
    wait_until(lambda: told_of(mesh, kind) > 0, 30, f"the load of {kind}")
    time.sleep(COLLECTED_S)
    counts = np.array(load(mesh)["counts"], float) - before
    assert counts.any(axis=1).all()
    return counts / counts.sum(axis=1, keepdims=True)


def test_each_kind_has_the_shares_that_shards_counted(mesh: MeshProcess) -> None:
    # Tests before this one may have had more steps a second than are counted.
    for number in range(2):
        time.sleep(WINDOW_S)
        ask(mesh, "", number)
    exact = {kind: run_kind(mesh, kind) for kind in (LETTERS, DIGITS)}
    time.sleep(2 * WINDOW_S)  # the rest of it has come
    for kind, shares in exact.items():
        said = load(mesh, f"?kind={kind}")
        assert np.allclose(said["shares"], shares, atol=ROUNDED)
        assert told_of(mesh, kind) == said["tokens"] >= TOKENS
    apart = abs(exact[LETTERS] - exact[DIGITS]).sum(axis=1) / 2
    assert (apart > 0.1).all(), "the experts of one are not those of the other"
    shown = run_cli("experts", "--kind", DIGITS, "--url", mesh.url, "--json")
    assert json.loads(shown.stdout)["kind"] == DIGITS
