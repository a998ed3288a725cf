"""A second mesh beside the first, with a router actor: it serves, loses parts, and goes.

The tests are one story and run in this order: each takes something more from the mesh.
"""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.status import ComponentKind
from tests.e2e.mesh_process import MeshProcess, mesh_config, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.vllm]

NOTICE_TIMEOUT_S = 6.0
"""A look of the monitor each second, with room for a busy machine; measured 1 to 2 s."""
SUSPECT_TIMEOUT_S = 30.0
"""Five looks of a second each until one that hangs is suspected, and room for a busy machine."""
IDLE_STOP_S = 30.0
"""Measured 3 s on two free cores; the limit leaves room for a busy machine."""


@pytest.fixture(scope="module")
def second(tiny_model: Path) -> Iterator[MeshProcess]:
    sections = {"router": {"mode": "actor"}, "logging": {"format": "json"}}
    with MeshProcess(mesh_config(tiny_model, "second", **sections)) as running:
        running.wait_for("ready at")
        yield running


def test_both_serve_side_by_side(mesh: MeshProcess, second: MeshProcess) -> None:
    assert second.url != mesh.url
    assert second.complete() == mesh.complete()


def test_the_router_is_listed_and_used(second: MeshProcess) -> None:
    status = second.status()
    assert status["router_mode"] == "actor"
    assert second.component(ComponentKind.ROUTER)["id"] == "router-0"


def test_a_shard_that_hangs_is_suspected_until_it_answers(second: MeshProcess) -> None:
    shard = second.component(ComponentKind.SHARD)
    os.kill(shard["pid"], signal.SIGSTOP)
    try:
        wait_until(
            lambda: second.component(ComponentKind.SHARD)["state"] == "suspect",
            SUSPECT_TIMEOUT_S,
            "suspected",
        )
        health = second.get("/health")
        assert health.status_code == 503
        assert f"shard {shard['id']} is suspect: has not answered for" in health.json()["reason"]
    finally:
        os.kill(shard["pid"], signal.SIGCONT)
    wait_until(lambda: second.get("/health").status_code == 200, SUSPECT_TIMEOUT_S, "recovered")
    assert second.complete() != ""


def lose(second: MeshProcess, kind: ComponentKind) -> str:
    """Kill a component; what the endpoint's health says once it is noticed."""
    victim = second.component(kind)
    os.kill(victim["pid"], signal.SIGKILL)
    wait_until(lambda: second.component(kind)["state"] == "dead", NOTICE_TIMEOUT_S, "noticed")
    said = second.component(kind)
    assert said["pid"] == victim["pid"]
    assert said["detail"] == "its process died: killed from outside, out of memory, or crashed"
    health = second.get("/health")
    assert health.status_code == 503
    reason: str = health.json()["reason"]
    return reason


def test_a_lost_router_is_told(second: MeshProcess) -> None:
    assert "router router-0 is dead: its process died" in lose(second, ComponentKind.ROUTER)


def test_a_lost_shard_is_told_with_what_it_held(second: MeshProcess) -> None:
    reason = lose(second, ComponentKind.SHARD)
    assert "experts have no living replica" in reason
    assert "shard nvidia-0 is dead: its process died" in reason


def test_a_lost_engine_takes_its_children_along(second: MeshProcess) -> None:
    lose(second, ComponentKind.ENGINE)
    cores = [p for p in second.living() if "EngineCore" in p]
    assert cores == []
    answer = second.post("/v1/completions", {"model": "tiny", "prompt": "x"})
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "service_unavailable_error"


def test_every_component_logs_json(second: MeshProcess) -> None:
    """What the tests before this one did has been logged by those it concerned."""
    lines = [line for log in second.worker_logs() for line in log.splitlines()]
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    assert {entry["component"] for entry in entries} >= {"controller", "engine-0", "gateway"}
    loggers = re.compile(r"\b(actors|orchestrator|vllm)(\.\w+)*\b")
    text = re.compile(r"^\S+ \S+ (DEBUG|INFO|WARNING|ERROR) ")
    assert [line for line in lines if text.match(line) and loggers.search(line)] == []


def test_ctrl_c_ends_it_and_leaves_the_other_alone(second: MeshProcess, mesh: MeshProcess) -> None:
    before = mesh.complete()
    second.signal(signal.SIGINT, group=True)
    assert second.wait(IDLE_STOP_S) == 0, second.transcript
    assert second.left_over() == []
    assert second.err == []
    assert mesh.complete() == before
