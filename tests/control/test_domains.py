"""The controller's plans keep an expert's copies in different failure domains."""

import time
from dataclasses import replace

from orchestrator.control.actions import MakePlan
from orchestrator.control.events import ComponentSaid, Tick
from orchestrator.control.keys import EXPERT, NO_KEYS, PlacedKey, all_keys
from orchestrator.control.lifecycle import Kind
from orchestrator.control.planning import make_plan
from orchestrator.control.settings import Settings
from orchestrator.control.state import Description, Facts, Intent, Place, State
from orchestrator.control.step import step

EXPERTS = 12
KEYS = frozenset(PlacedKey(EXPERT, 0, expert) for expert in range(EXPERTS))
RACKS = {"a": "rack-1", "b": "rack-1", "c": "rack-2", "d": "rack-2"}


def said(number: int, node: str) -> Description:
    return Description(
        incarnation=number + 1, node=node, addresses=("unix:/x",), holdings=NO_KEYS,
        capacity_bytes=EXPERTS // 2 + 1, key_bytes={EXPERT: 1},
    )  # fmt: skip


def planned_by_group(settings: Settings, nodes: list[str]) -> list[frozenset[PlacedKey]]:
    """What the first two and the last two of four shards would hold."""
    now_s = time.monotonic()
    places = {f"{pool}-0": Place(f"{pool}-0", Kind.SHARD, pool) for pool in RACKS}
    state = State(settings, Intent(keys=KEYS, places=places), Facts(started_s=now_s))
    state, _ = step(state, Tick(now_s))
    news = [
        ComponentSaid(now_s + 1, id, 1, said(number, node))
        for number, (id, node) in enumerate(zip(places, nodes, strict=True))
    ]
    _, actions = step(state, *news)
    (asked,) = [action for action in actions if isinstance(action, MakePlan)]
    target = make_plan(asked.plan).target
    return [all_keys({id: target[id] for id in ids}) for ids in (["a-0", "b-0"], ["c-0", "d-0"])]


def test_copies_are_in_different_domains_where_pools_name_theirs() -> None:
    settings = Settings(min_copies=2)
    assert planned_by_group(settings, ["box"] * 4) != [KEYS, KEYS], "else this shows nothing"
    assert planned_by_group(replace(settings, domains=RACKS), ["box"] * 4) == [KEYS, KEYS]


def test_else_a_node_is_a_domain_where_another_pool_names_one() -> None:
    mixed = Settings(min_copies=2, domains={"a": "rack-1", "c": "rack-2"})
    held = planned_by_group(mixed, ["x", "rack-1", "y", "rack-2"])
    assert held == [KEYS, KEYS], "a domain that a pool names comes before the node"
