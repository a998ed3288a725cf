"""From a `PlanRequest` to a `Proposal`, by the planner in `placement`. The one place in the control
plane that knows of layers and experts. Pure, but slow: a runner calls it in a thread.

Every shard keeps room for one copy free, so that two shards can always exchange copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.control.batching import bytes_of
from orchestrator.control.keys import EXPERT, NO_KEYS, Copies, Keys, PlacedKey, minus
from orchestrator.control.plan_request import PlanRequest, Proposal
from orchestrator.control.rules import NoPlaceAllowed, honour
from placement.memory import share_slots
from placement.policy.decision import decide
from placement.policy.policies import Policy, Situation, decided, replanned
from placement.types import EMPTY, IntArray, Placement
from placement.validation import number_domains

ROWS_PER_CALL = 256
"""Assignments of a call that is planned for, as in decoding with a few dozen requests: how much the
constant part of calls weighs depends on it."""

NUDGE_COPIES = 4
"""Copies per layer that a nudge may load."""


class NoPlan(ValueError):
    """There is no placement for this request; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The order in which arrays list layers and experts."""

    layers: tuple[int, ...]
    experts: int

    @classmethod
    def of(cls, keys: Keys) -> "Grid":
        """The grid of the experts among `keys`.

        Raises:
            NoPlan: other kinds of keys, or layers with gaps in their experts.
        """
        others = {key.kind for key in keys} - {EXPERT}
        if others:
            raise NoPlan(f"no planner for keys of kind {', '.join(sorted(others))}")
        layers = tuple(sorted({key.group for key in keys}))
        experts = max((key.number for key in keys), default=-1) + 1
        if len(keys) != len(layers) * experts:
            raise NoPlan(f"{len(keys)} keys are not {len(layers)} layers of {experts} experts")
        return cls(layers, experts)

    def array(self, copies: Copies, shards: Sequence[str]) -> IntArray:
        """int32 [L, D, S] experts per slot of `shards`."""
        row = {layer: number for number, layer in enumerate(self.layers)}
        held: list[list[list[int]]] = [[[] for _ in shards] for _ in self.layers]
        for device, shard in enumerate(shards):
            for key in sorted(copies.get(shard, NO_KEYS)):
                held[row[key.group]][device].append(key.number)
        slots = max((len(one) for layer in held for one in layer), default=0)
        array = np.full((len(self.layers), len(shards), max(slots, 1)), EMPTY, np.int32)
        for layer, devices in enumerate(held):
            for device, experts in enumerate(devices):
                array[layer, device, : len(experts)] = experts
        return array

    def copies(self, experts: IntArray, shards: Sequence[str]) -> dict[str, Keys]:
        """The inverse of `array`."""
        return {
            shard: frozenset(
                PlacedKey(EXPERT, self.layers[layer], int(expert))
                for layer, expert in self._held(experts[:, device])
            )
            for device, shard in enumerate(shards)
        }

    @staticmethod
    def _held(slots: IntArray) -> list[tuple[int, int]]:
        return [
            (int(layer), int(slots[layer, slot])) for layer, slot in np.argwhere(slots != EMPTY)
        ]


def make_plan(request: PlanRequest, policy: Policy = decided) -> Proposal:
    """Place the keys, or keep the placement where no copy would pay.

    policy: what to do where the shards are the same ones as before.

    Raises:
        NoPlan: too little memory, or keys that no planner knows.
    """
    grid = Grid.of(request.keys)
    shards = sorted(request.shards)
    shape = (len(grid.layers), grid.experts)
    load = np.ones(shape) if request.load is None else request.load
    slots = _slots(grid, request, shards, load)
    rate = np.array([request.shards[shard].rate for shard in shards])
    offset = _offset(request, shards, load)
    anew = request.anew or _is_astray(request)
    current = grid.array({shard: request.current.get(shard, NO_KEYS) for shard in shards}, shards)
    seen = Situation(
        load=load,
        speed=rate,
        slots=slots,
        offset=offset,
        current=current,
        planned_load=load if request.planned_load is None else request.planned_load,
        counts=load,
        nudge_copies=NUDGE_COPIES,
        min_copies=request.min_copies,
        failure_domains=number_domains([request.shards[shard].domain for shard in shards]),
    )
    try:
        step = replanned(seen) if anew else policy(seen)
    except ValueError as error:
        raise NoPlan(str(error)) from error
    balancedness = _balancedness(load, current, seen)
    if step.placement is None:
        return Proposal(
            target=request.current,
            balancedness=balancedness,
            predicted=balancedness,
            possible=decide(load, load, current, rate, slots, offset).possible,
            bytes=0,
            load=load,
            reason=step.reason,
            dry_run=request.dry_run,
        )
    reason = request.reason if anew else step.reason
    return _propose(request, grid, shards, seen, balancedness, step.placement, reason)


def _propose(
    request: PlanRequest,
    grid: Grid,
    shards: list[str],
    seen: Situation,
    balancedness: float,
    placement: Placement,
    reason: str,
) -> Proposal:
    load, slots = seen.load, seen.slots
    target = grid.copies(placement.experts, shards)
    predicted = placement.balancedness
    if request.forbidden:
        target = _by_rules(request, grid, target, slots, shards, load)
        predicted = _balancedness(load, grid.array(target, shards), seen)
    loaded = minus(target, request.current)
    return Proposal(
        target={shard: keys for shard, keys in target.items() if keys},
        balancedness=balancedness,
        predicted=predicted,
        possible=placement.bound,
        bytes=sum(bytes_of(keys, request.shards[shard]) for shard, keys in loaded.items()),
        load=load,
        reason=f"{reason}; {placement.reason}",
        dry_run=request.dry_run,
        anew=request.anew,
    )


def _is_astray(request: PlanRequest) -> bool:
    """Whether some copy is where it may not be, so that keeping the placement will not do."""
    current, forbidden = request.current, request.forbidden
    return any(current.get(id, NO_KEYS) & forbidden.get(id, NO_KEYS) for id in request.shards)


def _by_rules(
    request: PlanRequest,
    grid: Grid,
    target: Copies,
    slots: NDArray[np.int64],
    shards: list[str],
    load: NDArray[np.float64],
) -> dict[str, Keys]:
    row = {layer: number for number, layer in enumerate(grid.layers)}
    rooms = {shard: int(slots[:, device].sum()) for device, shard in enumerate(shards)}
    try:
        return honour(
            target,
            request.current,
            request.forbidden,
            rooms,
            lambda key: float(load[row[key.group], key.number]),
            request.min_copies,
        )
    except NoPlaceAllowed as error:
        raise NoPlan(str(error)) from error


def _balancedness(load: NDArray[np.float64], current: IntArray, seen: Situation) -> float:
    """Of the placement as it is; 0 where it leaves an expert out."""
    for row in current:
        if np.unique(row[row != EMPTY]).size < load.shape[1]:
            return 0.0
    return decide(load, load, current, seen.speed, seen.slots, seen.offset).balancedness


def _offset(
    request: PlanRequest, shards: list[str], load: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[D] tokens that the constant part of as many calls as carry the load costs each shard."""
    calls = float(load.sum(axis=1).mean()) / ROWS_PER_CALL
    return calls * np.array([request.shards[shard].call_rows for shard in shards])


def _slots(
    grid: Grid, request: PlanRequest, shards: list[str], load: NDArray[np.float64]
) -> NDArray[np.int64]:
    """[L, D] experts each shard may hold of each layer. Each keeps room for one copy free, for
    exchanges, unless all of it is needed to hold every expert."""
    L, copies = len(grid.layers), request.min_copies
    rooms = [request.shards[shard] for shard in shards]
    fit = np.array(
        [min(room.capacity_bytes // room.key_bytes[EXPERT], len(request.keys)) for room in rooms],
        np.int64,
    )
    for kept in (1, 0):
        try:
            return share_slots(
                load,
                np.maximum(fit - kept, 0),
                min_copies=copies,
                max_redundant_per_layer=request.most_redundant,
            )
        except ValueError:
            continue
    needed, held = copies * L * grid.experts, int(fit.sum())
    less = ""
    if shards and held < needed:
        largest = int(fit.argmax())
        less = f", {needed - held} less: {shards[largest]} holds {fit[largest]}"
    raise NoPlan(
        f"{len(shards)} shards have room for {held} copies, {copies} of each of "
        f"{L * grid.experts} experts are needed{less}: add shards or memory"
    )
