"""Which copies can be loaded next: the bookkeeping behind `moves.schedule_moves`.

An incoming expert takes, in order of preference: an empty slot; the slot of a replica that others
stand in for, dropped before loading; or staging memory, until the last replica it replaces is safe
on another device. For the last way one walks from device to device: what this device must give up
comes in there, what that one must give up comes in elsewhere, until a device has a free slot or the
walk meets itself. The devices on that path or circle load together and commit together, so each
needs staging for one expert only, and the walk never gets stuck where all devices have that.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from placement.types import EMPTY, IntArray

Place = tuple[int, int]
"""layer, device"""


class Load(NamedTuple):
    """One copy of a batch."""

    layer: int
    device: int
    slot: int
    expert: int
    replaces: int
    staged: bool


class ScheduleState:
    """What is loaded now, what still has to come in, and which slots may be given up."""

    def __init__(
        self,
        current: IntArray,
        target: IntArray,
        size: NDArray[np.float64],
        staging: NDArray[np.float64],
    ) -> None:
        self.live = current.copy()
        self.size = size
        self.staging = staging
        self.incoming: dict[Place, list[int]] = {}
        self.unwanted: dict[Place, list[int]] = {}
        """Slots that are empty, or hold an expert the target does not want there."""
        self.copies: dict[tuple[int, int], int] = {}
        for layer, device in np.ndindex(*current.shape[:2]):
            held = current[layer, device].tolist()
            wanted = target[layer, device].tolist()
            incoming = [e for e in wanted if e != EMPTY and e not in held]
            if incoming:
                self.incoming[layer, device] = incoming
            self.unwanted[layer, device] = [
                s for s, e in enumerate(held) if e == EMPTY or e not in wanted
            ]
            for expert in held:
                if expert != EMPTY:
                    self.copies[layer, expert] = self.copies.get((layer, expert), 0) + 1

    def next_batch(self, max_bytes: float) -> list[Load]:
        """Copies to load together; empty if nothing can be loaded."""
        batch: list[Load] = []
        room = self.staging.copy()
        total = 0.0
        for easy in (True, False):
            for place in sorted(self.incoming):
                for expert in list(self.incoming.get(place, ())):
                    if batch and total + self.size[place[0]] > max_bytes:
                        return batch
                    if expert not in self.incoming.get(place, ()):
                        continue
                    loads = self._take_slot(place, expert) if easy else []
                    if not easy:
                        loads = self._walk(place, expert, batch, room)
                    batch += loads
                    total += self.size[place[0]] * len(loads)
        return batch

    def commit(self, batch: list[Load]) -> None:
        """The batch is loaded: new copies serve, replaced ones are gone."""
        for load in batch:
            if load.staged:
                self.copies[load.layer, load.replaces] -= 1
        for load in batch:
            self.live[load.layer, load.device, load.slot] = load.expert
            key = (load.layer, load.expert)
            self.copies[key] = self.copies.get(key, 0) + 1

    def _take_slot(self, place: Place, expert: int) -> list[Load]:
        """Loads into an empty slot, or over a replica that can be spared, if there is one."""
        slot = self._free_slot(place)
        return [] if slot is None else [self._assign(place, expert, slot, staged=False)]

    def _free_slot(self, place: Place) -> int | None:
        held = [(s, int(self.live[place][s])) for s in self.unwanted[place]]
        for slot, expert in held:
            if expert == EMPTY:
                return slot
        for slot, expert in held:
            if self.copies[place[0], expert] > 1:
                return slot
        return None

    def _assign(self, place: Place, expert: int, slot: int, *, staged: bool) -> Load:
        replaced = int(self.live[place][slot])
        self.unwanted[place].remove(slot)
        self.incoming[place].remove(expert)
        if not self.incoming[place]:
            del self.incoming[place]
        if not staged and replaced != EMPTY:
            self.copies[place[0], replaced] -= 1
            self.live[place][slot] = EMPTY
        return Load(*place, slot, expert, replaced, staged)

    def _walk(
        self, place: Place, expert: int, batch: list[Load], room: NDArray[np.float64]
    ) -> list[Load]:
        """Loads `expert` along with what must be loaded for it; empty if that cannot be yet."""
        layer = place[0]
        path: list[tuple[Place, int, int]] = []
        while True:
            free = self._free_slot(place)
            if free is not None:
                loads = [self._assign(place, expert, free, staged=False)]
                break
            if room[place[1]] < self.size[layer]:
                return []
            step = self._next_step(place, batch, room)
            if step is None:
                return []
            slot, following = step
            path.append((place, expert, slot))
            if following is None:
                loads = []
                break
            expert = int(self.live[place][slot])
            place = following
            met = [i for i, (other, _, _) in enumerate(path) if other == place]
            if met:
                # A circle: what led to it waits for another batch.
                path = path[met[0] :]
                path[0] = (place, expert, path[0][2])
                loads = []
                break
        for at, incoming, slot in path:
            loads.append(self._assign(at, incoming, slot, staged=True))
            room[at[1]] -= self.size[layer]
        return loads

    def _next_step(
        self, place: Place, batch: list[Load], room: NDArray[np.float64]
    ) -> tuple[int, Place | None] | None:
        """A slot to give up and the device its expert goes to; None for one on its way already."""
        layer = place[0]
        arriving = {load.expert for load in batch if load.layer == layer}
        for slot in self.unwanted[place]:
            if int(self.live[place][slot]) in arriving:
                return slot, None
        for slot in self.unwanted[place]:
            expert = int(self.live[place][slot])
            for other, wanted in self.incoming.items():
                if other[0] != layer or expert not in wanted:
                    continue
                if room[other[1]] >= self.size[layer] or self._free_slot(other) is not None:
                    return slot, other
        return None
