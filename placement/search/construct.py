"""Three ways to build a layer's placement from nothing; `full_plan` chooses.

- `place_flexible`: replicated experts first, joining devices, then the others. Best where devices
  are alike or memory is ample.
- `place_reserved`: every expert once, by remaining capacity per slot, then replicas into slots kept
  free where memory is least precious. Best where fast devices have few slots.
- `place_wrapped`: device by device, whole experts and one cut expert fill it exactly (McNaughton's
  wrap-around rule with a limit on pieces; the alias method, for two slots). Exact on the load it is
  given wherever redundant slots >= devices - 1, but joins devices loosely.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from native.kernel import entry, kernel
from placement.problem import LayerProblem, Problem, layer_of
from placement.search.draft import Draft, fill_spare, new_draft, place_copies, place_singles, reset
from placement.types import FloatArray, IntArray

Rows = NDArray[np.int64]

LOAN = 0.1
"""How much a replica in a reserved slot is expected to take off its expert's first copy."""


# Three entries instead of one with a flag: few clusters need all three, and each takes seconds to
# compile. They fill `experts` [L, D, S], empty at entry, in the layers `rows`. order: [L, E]
# experts by falling load; time: [L] that each device should be busy.


@entry
def build_flexible(
    p: Problem, rows: Rows, order: Rows, time: FloatArray, experts: IntArray
) -> None:
    """`place_flexible` for every row."""
    a = new_draft(experts.shape[1])
    copies = np.empty(p.load.shape[1], np.int32)
    for layer in rows:
        begin(a, layer_of(p, layer), time[layer], copies)
        place_flexible(a, experts[layer], p.load[layer], order[layer], copies)
        fill_spare(p.slots[layer], experts[layer], p.load[layer], copies)


@entry
def build_reserved(
    p: Problem, rows: Rows, order: Rows, time: FloatArray, experts: IntArray
) -> None:
    """`place_reserved` for every row."""
    a = new_draft(experts.shape[1])
    copies = np.empty(p.load.shape[1], np.int32)
    for layer in rows:
        begin(a, layer_of(p, layer), time[layer], copies)
        place_reserved(a, experts[layer], p.load[layer], order[layer], copies, LOAN)
        fill_spare(p.slots[layer], experts[layer], p.load[layer], copies)


@entry
def build_wrapped(
    p: Problem, rows: Rows, order: Rows, time: FloatArray, ranking: Rows, experts: IntArray
) -> None:
    """`place_wrapped` for every row; ranking: [L, D] devices by falling capacity per slot."""
    a = new_draft(experts.shape[1])
    copies = np.empty(p.load.shape[1], np.int32)
    for layer in rows:
        begin(a, layer_of(p, layer), time[layer], copies)
        place_wrapped(a, experts[layer], p.load[layer], order[layer], ranking[layer])
        fill_spare(p.slots[layer], experts[layer], p.load[layer], copies)


@kernel
def begin(a: Draft, p: LayerProblem, time: float, copies: NDArray[np.int32]) -> None:
    """Empties the draft and counts copies for one layer."""
    reset(a, p, time)
    spare = -p.min_copies * p.load.shape[0]
    for d in range(p.speed.shape[0]):
        spare += p.slots[d]
    count_copies(p.load, p.speed.shape[0], spare, p.min_copies, copies)


@kernel
def count_copies(
    load: FloatArray, devices: int, spare: int, least: int, copies: NDArray[np.int32]
) -> None:
    """Fills `copies` [E]: `least` each, and `spare` more where tokens per copy are highest."""
    E = load.shape[0]
    piece = load / least
    copies[:] = least
    for _ in range(spare):
        best = 0
        for e in range(1, E):
            if piece[e] > piece[best]:
                best = e
        if piece[best] < 0:
            return
        copies[best] += 1
        piece[best] = load[best] / copies[best] if copies[best] < devices else -1.0


@kernel
def place_flexible(
    a: Draft,
    experts: IntArray,
    load: FloatArray,
    order: NDArray[np.int64],
    copies: NDArray[np.int32],
) -> None:
    """Replicated experts first, then the others; `a` reset, `experts` [D, S] empty."""
    weight = load.copy()
    for k in range(load.shape[0]):
        e = order[k]
        if copies[e] > 1:
            place_copies(a, experts, e, load[e], copies[e], 0)
            weight[e] = -1.0
    place_singles(a, experts, load, order, weight)


@kernel
def place_reserved(
    a: Draft,
    experts: IntArray,
    load: FloatArray,
    order: NDArray[np.int64],
    copies: NDArray[np.int32],
    loan: float,
) -> None:
    """Every expert once, then replicas into spare slots; `a` reset, `experts` [D, S] empty.

    loan: part of a copy's tokens that each further copy is expected to take off the first.
    """
    D = a.slots.shape[0]
    slots = a.slots.copy()
    for _ in range(slots.sum() - load.shape[0]):
        best = -1
        for d in range(D):
            if a.slots[d] > 1 and (
                best < 0 or a.room[d] * a.slots[best] < a.room[best] * a.slots[d]
            ):
                best = d
        if best < 0:
            break
        a.slots[best] -= 1
    for d in range(D):
        if slots[d] > 0:
            # A slot kept free keeps its part of the capacity free for what it will be lent.
            a.held[d] = a.room[d] * (slots[d] - a.slots[d]) / slots[d]
    weight = load / (1.0 + loan * (copies - 1))
    place_singles(a, experts, load, order, weight)
    home = np.zeros(load.shape[0], np.int64)
    for d in range(D):
        for s in range(a.used[d]):
            e = experts[d, s]
            home[e] = d
            if copies[e] > 1:
                a.movable[d] += weight[e] / 2
        a.slots[d] = slots[d]
        # Replicas settle by movable load here: the first copies have used up the capacity.
        a.held[d] = -np.inf
    for k in range(load.shape[0]):
        e = order[k]
        if copies[e] > 1:
            a.member[0] = home[e]
            place_copies(a, experts, e, load[e], copies[e], 1)


CUT_SHARE = 0.3
"""Part of a device's capacity that its cut expert should take, so that there is load to move."""


@kernel
def place_wrapped(
    a: Draft,
    experts: IntArray,
    load: FloatArray,
    order: NDArray[np.int64],
    devices: NDArray[np.int64],
) -> None:
    """Fills `devices` one by one, exactly; `a` reset, `experts` [D, S] empty.

    A device of s slots takes s - 1 neighbours in the order of what is left of each expert, chosen
    so that what is left of the hottest expert can fill the rest.
    """
    line = order.copy()
    left = load.copy()
    n = load.shape[0]
    for d in devices:
        whole = min(a.slots[d] - 1, n - 1)
        if whole < 0:
            continue
        at = choose_window(left, line, n, whole, a.room[d])
        hottest = line[0]
        rest = a.room[d]
        for k in range(at, at + whole):
            experts[d, a.used[d]] = line[k]
            a.used[d] += 1
            rest -= left[line[k]]
        for k in range(at, n - whole):
            line[k] = line[k + whole]
        n -= whole
        experts[d, a.used[d]] = hottest
        a.used[d] += 1
        left[hottest] = max(left[hottest] - rest, 0.0)
        k = 0
        while k + 1 < n and left[line[k + 1]] > left[hottest]:
            line[k] = line[k + 1]
            k += 1
        line[k] = hottest


@kernel
def choose_window(
    left: FloatArray, line: NDArray[np.int64], n: int, whole: int, room: float
) -> int:
    """First index (>= 1) of the `whole` neighbours in line[:n] that suit a device best."""
    sum_ = 0.0
    for k in range(n - whole, n):
        sum_ += left[line[k]]
    best = n - whole
    least = np.inf
    goal = room * (1 - CUT_SHARE)
    for at in range(n - whole, 0, -1):
        miss = abs(sum_ - goal)
        # Too much for the device, or more left over than the hottest expert can fill.
        miss += OVERFULL * (max(sum_ - room, 0.0) + max(room - sum_ - left[line[0]], 0.0))
        if miss < least:
            least = miss
            best = at
        if whole == 0:
            break
        sum_ += left[line[at - 1]] - left[line[at + whole - 1]]
    return best


OVERFULL = 1000.0
"""Weight of a misfit that no cut can mend, against a cut of the wrong size."""
