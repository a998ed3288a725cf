"""A mesh whose journal is lost: its intent from what its processes say."""

from typing import Any

from actors.descriptions import EngineDescription, Held, Said, ShardDescription
from actors.engine_lifecycle import EngineState
from orchestrator.actor_names import ActorName
from orchestrator.config.schema import MeshConfig
from orchestrator.control.keys import EXPERT, PlacedKey
from orchestrator.control.lifecycle import Kind
from orchestrator.control.settings import Settings
from orchestrator.control.sizes import ENGINE_POOL
from orchestrator.control.state import Intent
from orchestrator.control.step import recovered
from orchestrator.runtime.rebuilt import rebuilt_intent
from tests.orchestrator.test_mesh_plan import SPEC

NOW_S = 1.8e9
POOL = {"vendor": "cpu", "shards": 2}
CONFIG = MeshConfig.model_validate({"model": {"path": "/m"}, "pools": {"host": POOL}})
ENGINE = EngineDescription(9, 7, "box", EngineState.READY, "", None, 0, 1)


def shard(incarnation: int, *experts: int) -> ShardDescription:
    held = frozenset((EXPERT, 0, expert) for expert in experts)
    return ShardDescription(
        incarnation, 1, "box", (), "same", "kernel", 1, 100, None,
        Held(1, (3, 4), held, frozenset(), ""), "", 0, 0, 0, 0.0,
    )  # fmt: skip


def rebuilt(said: dict[ActorName, Any], *silent: ActorName) -> Intent:
    answers: dict[ActorName, Said] = said
    return rebuilt_intent(CONFIG, SPEC, "same", {*said, *silent}, answers, NOW_S)


def test_what_shards_hold_becomes_the_epoch_under_a_term_above_all_others() -> None:
    said = {
        ActorName(Kind.SHARD, "host-0", 3): shard(11, 0, 1),
        ActorName(Kind.SHARD, "host-1", 1): shard(12, 1),
        ActorName(Kind.ENGINE, "engine-0", 2): ENGINE,
    }
    intent = rebuilt(said)
    assert intent.epoch is not None
    assert intent.epoch.copies["host-0"] == {PlacedKey(EXPERT, 0, 0), PlacedKey(EXPERT, 0, 1)}
    assert dict(intent.epoch.incarnations) == {"host-0": 11, "host-1": 12}
    assert {id: place.generation for id, place in intent.places.items()} == {
        "host-0": 3, "host-1": 1, "engine-0": 2,
    }  # fmt: skip
    state = recovered(intent, Settings(), 0.0)
    assert state.intent.epoch is not None
    assert state.intent.epoch.id > (10_000, 10_000)


def test_places_that_were_added_are_kept_and_missing_ones_are_started() -> None:
    said = {
        ActorName(Kind.SHARD, "host-7", 1): shard(11, 0),
        ActorName(Kind.ENGINE, "engine-3", 1): ENGINE,
    }
    places = rebuilt(said).places
    assert (places["host-7"].pool, places["host-7"].generation) == ("host", 1)
    assert places["engine-3"].pool == ENGINE_POOL
    assert places["host-0"].generation == 0
    assert places["engine-0"].generation == 0


def test_of_two_processes_of_one_place_the_newer_one_counts() -> None:
    old, new = (ActorName(Kind.SHARD, "host-0", generation) for generation in (1, 2))
    intent = rebuilt({old: shard(11, 0), new: shard(12, 1)})
    assert intent.places["host-0"].generation == 2
    assert intent.epoch is not None
    assert intent.epoch.incarnations == {"host-0": 12}


def test_one_that_does_not_answer_is_in_its_place_but_not_in_the_epoch() -> None:
    silent = ActorName(Kind.SHARD, "host-1", 5)
    intent = rebuilt({ActorName(Kind.SHARD, "host-0", 1): shard(11, 0)}, silent)
    assert intent.places["host-1"].generation == 5
    assert intent.epoch is not None
    assert "host-1" not in intent.epoch.copies


def test_a_mesh_that_holds_nothing_yet_has_no_epoch() -> None:
    said = {ActorName(Kind.SHARD, "host-0", 1): shard(11)}
    assert rebuilt(said).epoch is None
