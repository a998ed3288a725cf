"""Which copies can be loaded next: the bookkeeping behind `moves.schedule_moves`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.types import EMPTY, IntArray

Slot = tuple[int, int, int]
"""layer, device, slot"""


class ScheduleState:
    """What is loaded now, what is wanted, and which slots still differ."""

    def __init__(
        self,
        current: IntArray,
        target: IntArray,
        size: NDArray[np.float64],
        staging: NDArray[np.float64],
    ) -> None:
        self.live = current.copy()
        self.target = target
        self.size = size
        self.staging = staging
        differs = (target != current) & (target != EMPTY)
        self.pending: set[Slot] = {(int(a), int(b), int(c)) for a, b, c in np.argwhere(differs)}
        self._copies: dict[tuple[int, int], int] = {}
        for layer, expert in zip(
            np.nonzero(current != EMPTY)[0], current[current != EMPTY], strict=True
        ):
            key = (int(layer), int(expert))
            self._copies[key] = self._copies.get(key, 0) + 1
        self.dropped: set[Slot] = set()

    def next_batch(self, max_bytes: float) -> list[tuple[Slot, bool]]:
        """Slots to load together, each with whether it needs staging; empty if nothing can.

        Reserves what it takes: dropped replicas stop counting at once.
        """
        chosen: list[tuple[Slot, bool]] = []
        taken: set[Slot] = set()
        room = self.staging.copy()
        total = 0.0
        for at in sorted(self.pending, key=self._urgency):
            if at in taken:
                continue
            if chosen and total + self.size[at[0]] > max_bytes:
                break
            chain = self._chain(at, taken, room)
            for slot, staged in chain:
                taken.add(slot)
                total += self.size[slot[0]]
                if staged:
                    room[slot[1]] -= self.size[slot[0]]
                else:
                    self._drop(slot)
            chosen += chain
        return chosen

    def commit(self, chosen: list[tuple[Slot, bool]]) -> None:
        """The batch is loaded: new copies serve, replaced ones are gone."""
        for slot, staged in chosen:
            if staged:
                self._drop(slot)
            layer, expert = slot[0], int(self.target[slot])
            self.live[slot] = expert
            self._copies[layer, expert] = self._copies.get((layer, expert), 0) + 1
            self.pending.discard(slot)
            self.dropped.discard(slot)

    def _urgency(self, at: Slot) -> tuple[int, Slot]:
        """Copies into empty slots first, then over replicas, then over last replicas."""
        replaced = int(self.live[at])
        if replaced == EMPTY:
            return 0, at
        return (1 if self._copies[at[0], replaced] > 1 else 2), at

    def _chain(
        self, at: Slot, taken: set[Slot], room: NDArray[np.float64]
    ) -> list[tuple[Slot, bool]]:
        """The copy at `at` with those that must be loaded along; empty if that cannot be yet.

        If the slot holds the last replica of an expert, a copy of that expert elsewhere must be
        in the batch too, and so on until a free slot, or round in a circle.
        """
        chain: list[tuple[Slot, bool]] = []
        inside: set[Slot] = set()
        free = room.copy()
        while at not in inside:
            replaced = int(self.live[at])
            if replaced == EMPTY or self._copies[at[0], replaced] > 1:
                return [*chain, (at, False)]
            if free[at[1]] < self.size[at[0]]:
                return []
            free[at[1]] -= self.size[at[0]]
            chain.append((at, True))
            inside.add(at)
            if self._arrives(at[0], replaced, taken):
                return chain
            following = self._copy_of(at[0], replaced, taken)
            if following is None:
                return []
            at = following
        return chain

    def _arrives(self, layer: int, expert: int, taken: set[Slot]) -> bool:
        """Whether this batch already loads the expert somewhere."""
        return any(s[0] == layer and int(self.target[s]) == expert for s in taken)

    def _copy_of(self, layer: int, expert: int, taken: set[Slot]) -> Slot | None:
        """A pending copy of the expert, the one easiest to load."""
        options = [
            s
            for s in self.pending
            if s[0] == layer and s not in taken and int(self.target[s]) == expert
        ]
        return min(options, key=self._urgency) if options else None

    def _drop(self, slot: Slot) -> None:
        replaced = int(self.live[slot])
        if replaced != EMPTY and slot not in self.dropped:
            self._copies[slot[0], replaced] -= 1
            self.dropped.add(slot)
