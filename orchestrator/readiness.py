"""Whether a completion would succeed now, and why not. Pure."""

from collections.abc import Sequence

import numpy as np

from orchestrator.components import Component
from orchestrator.status import ComponentKind, ComponentState
from placement.epoch import EMPTY_SLOT, PlanEpoch


def readiness(
    components: Sequence[Component], epoch: PlanEpoch | None, *, needs_router: bool
) -> tuple[bool, str]:
    """(ready, reason): an engine is ready, a router if the mode needs one, and every expert of the
    epoch lives on a shard that is ready."""
    ready = {
        kind: [c for c in components if c.kind is kind and _ready(c)] for kind in ComponentKind
    }
    if epoch is None:
        return False, "no plan epoch yet"
    unplaced = unplaced_experts(components, epoch)
    if unplaced:
        layer, expert = unplaced[0]
        lost = [
            _how_it_is(c) for c in components if c.kind is ComponentKind.SHARD and not _ready(c)
        ]
        return False, (
            f"{len(unplaced)} experts have no living replica, first: layer {layer} expert {expert} "
            f"({'; '.join(lost)})"
        )
    if needs_router and not ready[ComponentKind.ROUTER]:
        routers = [c for c in components if c.kind is ComponentKind.ROUTER]
        return False, "; ".join(map(_how_it_is, routers)) or "no router was started yet"
    engines = [c for c in components if c.kind is ComponentKind.ENGINE]
    if not ready[ComponentKind.ENGINE]:
        return False, "; ".join(map(_how_it_is, engines)) or "no engine was started yet"
    return True, f"{len(ready[ComponentKind.ENGINE])} of {len(engines)} engines ready"


def unplaced_experts(components: Sequence[Component], epoch: PlanEpoch) -> list[tuple[int, int]]:
    """(layer, expert) pairs that no ready shard holds. Shards are in the epoch's order."""
    shards = [c for c in components if c.kind is ComponentKind.SHARD]
    live = np.array([_ready(c) for c in shards])
    missing = []
    for row, layer in enumerate(epoch.layers):
        held = epoch.experts[row][live]
        lost = np.setdiff1d(np.arange(epoch.num_experts), held[held != EMPTY_SLOT])
        missing += [(layer, int(expert)) for expert in lost]
    return missing


def _ready(component: Component) -> bool:
    return component.state is ComponentState.READY


def _how_it_is(component: Component) -> str:
    state = f"{component.kind} {component.id} is {component.state}"
    return f"{state}: {component.detail}" if component.detail else state
