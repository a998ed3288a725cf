"""States of small meshes, as the control plane has them."""

from collections.abc import Mapping

from orchestrator.control.keys import EXPERT, Keys, PlacedKey
from orchestrator.control.lifecycle import Kind, Life
from orchestrator.control.state import (
    Component,
    Description,
    Epoch,
    EpochId,
    Facts,
    Intent,
    Place,
    State,
)

LAYER = 2
EXPERTS = 4


def keys(*experts: int) -> Keys:
    return frozenset(PlacedKey(EXPERT, LAYER, expert) for expert in experts)


def state(
    held: Mapping[str, Keys],
    lives: Mapping[str, Life] | None = None,
    others: Mapping[str, Kind] | None = None,
    whys: Mapping[str, str] | None = None,
    published: bool = True,
) -> State:
    """One layer of four experts. held: by shard, also what the epoch names; lives: of components
    that are not ready; others: engines and routers."""
    lives, others, whys = lives or {}, others or {}, whys or {}
    kinds = dict.fromkeys(held, Kind.SHARD) | dict(others)
    places = {
        id: Place(id, kind, id.rpartition("-")[0] if kind is Kind.SHARD else kind, generation=1)
        for id, kind in kinds.items()
    }
    components = {
        id: Component(
            1,
            lives.get(id, Life.READY),
            0.0,
            why=whys.get(id, ""),
            said=Description(incarnation=7, node="box", holdings=held.get(id, frozenset())),
        )
        for id in kinds
    }
    number = EpochId(1, 1)
    epoch = Epoch(number, dict(held), dict.fromkeys(held, 7)) if held else None
    intent = Intent(keys=keys(*range(EXPERTS)), places=places, epoch=epoch)
    facts = Facts(components=components, published=number if published else None)
    return State(intent=intent, facts=facts)
