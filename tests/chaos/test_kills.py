"""One mesh under streams, whose processes are killed and stopped one after the other.

Every expert has two copies. The tests are one story and run in this order; after each, the mesh has
all of its parts again and answers as before.
"""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.correctness import DEMO
from orchestrator.status import ComponentKind
from tests.e2e.mesh_process import ROOT, MeshProcess, environment, serving, wait_until
from tests.nodes.meshes import MODEL
from tests.nodes.streams import PROMPTS, Stream, streaming

pytestmark = [
    pytest.mark.chaos, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(1200),
]  # fmt: skip

TOKENS = 120
REPLACE_TIMEOUT_S = 240.0
"""Only a replacement that does not come reaches this."""
REPAIR_TIMEOUT_S = 60.0
"""Survivors load in well under a second what a shard alone held; see benchmarks/failover.py."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[MeshProcess]:
    pool = {"vendor": "cpu", "memory": "11MiB", "speed": 1.0}
    config = {
        "mesh": {"name": "chaos"},
        "model": {"path": str(DEMO / "checkpoint"), "served_name": MODEL},
        "engines": {"vllm": {"max_num_seqs": 16, "max_num_batched_tokens": 512}},
        "pools": {"a": pool, "b": pool, "c": pool},
        "placement": {"min_copies": 2},
        "router": {"mode": "actor"},
        "gateway": {"port": 0},
    }
    with serving(config) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(mesh: MeshProcess) -> list[str]:
    """The text of every stream while nothing happens."""
    streams = run_streams(mesh)
    return [stream.text for stream in streams]


def run_streams(mesh: MeshProcess, *losses: tuple[int, signal.Signals]) -> list[Stream]:
    """Streams that all end well, while processes get signals."""
    with streaming(mesh.url, PROMPTS, TOKENS) as streams:
        for pid, number in losses:
            os.kill(pid, number)
    assert [stream.error for stream in streams] == [""] * len(PROMPTS)
    return streams


def parts(mesh: MeshProcess) -> dict[str, dict[str, Any]]:
    """Components by id; empty while the controller is away."""
    answer = mesh.get("/api/v1/status")
    if answer.status_code != 200:
        return {}
    return {c["id"]: c for c in answer.json()["components"]}


def wait_whole(mesh: MeshProcess, gone: dict[str, int]) -> None:
    """Until other processes are in the places of those that were lost, and all is as it was."""

    def is_whole() -> bool:
        now = parts(mesh)
        replaced = all(id in now and now[id]["pid"] not in (0, pid) for id, pid in gone.items())
        return replaced and all(c["state"] == "ready" for c in now.values())

    wait_until(is_whole, REPLACE_TIMEOUT_S, f"{', '.join(gone)} are replaced")
    wait_until(lambda: mesh.get("/health").status_code == 200, REPLACE_TIMEOUT_S, "healthy")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_shard_with_replicas_is_not_noticed(
    mesh: MeshProcess, undisturbed: list[str], number: signal.Signals
) -> None:
    pid = parts(mesh)["b-0"]["pid"]
    streams = run_streams(mesh, (pid, number))
    assert [stream.text for stream in streams] == undisturbed
    wait_whole(mesh, {"b-0": pid})
    held = {id: c["slots"] for id, c in parts(mesh).items() if c["kind"] == ComponentKind.SHARD}
    assert sum(held.values()) >= 2 * 4 * 64, "every expert has two copies again"
    assert [stream.text for stream in run_streams(mesh)] == undisturbed


def test_the_last_copies_of_experts_are_loaded_by_others(
    mesh: MeshProcess, undisturbed: list[str]
) -> None:
    """Two of three shards die together: most experts lose both copies. No stream fails; where
    tokens are nearly tied a text may take another turn, since other shards group the sums."""
    pids = {id: parts(mesh)[id]["pid"] for id in ("a-0", "c-0")}
    streams = run_streams(mesh, *((pid, signal.SIGKILL) for pid in pids.values()))
    same = [stream.text == text for stream, text in zip(streams, undisturbed, strict=True)]
    assert sum(same) >= len(PROMPTS) // 2
    wait_whole(mesh, pids)


def test_a_killed_controller_is_not_missed(mesh: MeshProcess, undisturbed: list[str]) -> None:
    """Together with a shard: its successor finds the loss."""
    before = {id: c["pid"] for id, c in parts(mesh).items()}
    lost = {id: before[id] for id in ("controller", "a-0")}
    streams = run_streams(mesh, *((pid, signal.SIGKILL) for pid in lost.values()))
    assert [stream.text for stream in streams] == undisturbed
    wait_whole(mesh, lost)
    after = {id: c["pid"] for id, c in parts(mesh).items() if id not in lost}
    assert after == {id: pid for id, pid in before.items() if id not in lost}, "all were adopted"


def test_a_damaged_journal_costs_no_process(mesh: MeshProcess, undisturbed: list[str]) -> None:
    """The next controller goes on with what the mesh's processes say of themselves."""
    before = {id: c["pid"] for id, c in parts(mesh).items()}
    for part in mesh.state_dir.glob("*.journal*"):  # with what SQLite has beside it
        part.write_bytes(b"no journal" * 1000)
    streams = run_streams(mesh, (before["controller"], signal.SIGKILL))
    assert [stream.text for stream in streams] == undisturbed
    wait_whole(mesh, {"controller": before["controller"]})
    after = {id: c["pid"] for id, c in parts(mesh).items()}
    assert {**after, "controller": 0} == {**before, "controller": 0}, "all were adopted"
    assert list(mesh.state_dir.glob("*.journal.damaged-0"))
    assert [stream.text for stream in run_streams(mesh)] == undisturbed


def test_a_controller_that_cannot_begin_says_why_and_tries_again(mesh: MeshProcess) -> None:
    """Here somebody else holds the journal's lock for longer than a controller waits for it."""
    before = {id: c["pid"] for id, c in parts(mesh).items()}
    (path,) = mesh.state_dir.glob("*.lock")
    with path.open("a+") as held:
        os.kill(before["controller"], signal.SIGKILL)
        fcntl.flock(held, fcntl.LOCK_EX)

        def reason() -> str:
            return str(parts(mesh).get("controller", {}).get("detail", ""))

        wait_until(lambda: "cannot go on" in reason(), 60.0, "the reason is told")
        assert "is held by another controller" in reason()
        assert mesh.complete(model=MODEL), "requests are served meanwhile"
    wait_whole(mesh, {"controller": before["controller"]})
    after = {id: c["pid"] for id, c in parts(mesh).items()}
    assert {**after, "controller": 0} == {**before, "controller": 0}, "all were adopted"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_router_is_not_noticed(
    mesh: MeshProcess, undisturbed: list[str], number: signal.Signals
) -> None:
    pid = parts(mesh)["router-0"]["pid"]
    streams = run_streams(mesh, (pid, number))
    assert [stream.text for stream in streams] == undisturbed
    wait_whole(mesh, {"router-0": pid})


def test_the_example_kills_parts(mesh: MeshProcess) -> None:
    """`examples/break_it`: each part is replaced; text changes at most where its engine is lost.
    The tests above kill the others."""
    ids = ["controller", "engine-0"]
    command = [sys.executable, "examples/break_it/break_it.py", "--url", mesh.url]
    command += [word for id in ids for word in ("--part", id)]
    done = subprocess.run(
        [*command, "--model", MODEL], capture_output=True, text=True, check=False, cwd=ROOT,
        env=environment(), timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines()[3:]}
    assert list(rows) == ids
    assert all("the same text" in line for id, line in rows.items() if id != "engine-0")
