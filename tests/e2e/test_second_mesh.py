"""A second mesh beside the first, with a router actor: it serves, loses parts, gets them back, and
goes.

The tests are one story and run in this order.
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

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.vllm, pytest.mark.long]

REPLACE_TIMEOUT_S = 180.0
"""A new process starts and loads: an engine takes 20 s on two free cores, far more on busy ones."""
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
        said = f"shard {shard['id']} is suspect: 5 probes in a row were not answered"
        assert said in health.json()["reason"]
    finally:
        os.kill(shard["pid"], signal.SIGCONT)
    wait_until(lambda: second.get("/health").status_code == 200, SUSPECT_TIMEOUT_S, "recovered")
    assert second.complete() != ""


def lose(second: MeshProcess, kind: ComponentKind) -> None:
    """Kill a component; returns when another process has its place and the mesh serves again."""
    victim = second.component(kind)
    os.kill(victim["pid"], signal.SIGKILL)

    def is_replaced() -> bool:
        now = second.component(kind)
        return now["id"] == victim["id"] and now["pid"] not in (0, victim["pid"])

    wait_until(is_replaced, REPLACE_TIMEOUT_S, f"{victim['id']} is replaced")
    wait_until(
        lambda: second.component(kind)["state"] == "ready"
        and second.get("/health").status_code == 200,
        REPLACE_TIMEOUT_S,
        f"{victim['id']} is ready",
    )  # fmt: skip


def test_a_killed_controller_is_not_missed(second: MeshProcess) -> None:
    before, pids = second.complete(), {c["id"]: c["pid"] for c in second.status()["components"]}
    os.kill(pids["controller"], signal.SIGKILL)
    assert second.complete() == before

    def is_back() -> bool:
        answer = second.get("/api/v1/status")
        if answer.status_code != 200:
            return False
        found = {c["id"]: c for c in answer.json()["components"]}
        states = {c["state"] for c in found.values()}
        return found["controller"]["pid"] != pids["controller"] and states == {"ready"}

    wait_until(is_back, REPLACE_TIMEOUT_S, "the controller is back and knows every component")
    now = {c["id"]: c["pid"] for c in second.status()["components"]}
    assert {id: pid for id, pid in now.items() if id != "controller"} == {
        id: pid for id, pid in pids.items() if id != "controller"
    }
    assert second.complete() == before


@pytest.mark.parametrize("kind", [ComponentKind.ROUTER, ComponentKind.SHARD])
def test_a_killed_part_is_replaced(second: MeshProcess, kind: ComponentKind) -> None:
    before = second.complete()
    lose(second, kind)
    assert second.complete() == before


def test_a_killed_engine_is_replaced_and_takes_its_children_along(second: MeshProcess) -> None:
    before = second.complete()
    (core,) = [p for p in second.living() if "EngineCore" in p]
    lose(second, ComponentKind.ENGINE)
    assert core not in second.living()
    assert second.complete() == before


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
