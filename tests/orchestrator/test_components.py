"""What the controller remembers of a component."""

import logging

import pytest

from orchestrator.status import ComponentKind, ComponentState
from tests.orchestrator.building import component

SAID = {
    "pid": 7,
    "node": "box/1a2b3c4d",
    "state": "ready",
    "detail": "fine",
    "memory_bytes": 96,
    "slots": 2,
    "calls": 3,
}


def test_a_status_answer_is_taken_in() -> None:
    shard = component("a-0", ComponentKind.SHARD, ComponentState.STARTING)
    assert (shard.pid, shard.node) == (0, "")
    shard.info = {"pid": 7, "node": "box/1a2b3c4d"}
    assert (shard.pid, shard.node) == (7, "box")
    shard.hear(SAID)
    status = shard.status()
    assert (status.pid, status.node, status.state) == (7, "box", ComponentState.READY)
    assert (status.memory_bytes, status.slots, status.detail) == (96, 2, "fine")


def test_a_dead_one_keeps_what_it_said_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    shard = component("a-0", ComponentKind.SHARD)
    shard.hear(SAID)
    with caplog.at_level(logging.ERROR):
        shard.lose("killed")
        shard.lose("killed again")
    assert [record.getMessage() for record in caplog.records] == ["shard a-0 is dead: killed"]
    status = shard.status()
    assert (status.state, status.detail) == (ComponentState.DEAD, "killed again")
    assert (status.pid, status.slots) == (7, 2)


def test_an_unknown_state_is_an_error() -> None:
    with pytest.raises(ValueError, match="asleep"):
        component("a-0", ComponentKind.SHARD).hear({**SAID, "state": "asleep"})
