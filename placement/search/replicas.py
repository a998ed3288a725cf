"""The replicas of one layer as a graph, and the tokens on it: the state `flow` works on.

Only replicated experts matter to a split: each joins its devices, and its replicas are called stubs
here. Tokens of the others are part of their device's load from the start.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from native.kernel import kernel
from placement.problem import LayerProblem
from placement.types import FloatArray, IntArray


class Flow(NamedTuple):
    """Scratch for one layer, reused over layers. A stub is one replica of a replicated expert."""

    copies: NDArray[np.int32]
    """[E] replicas per expert."""
    first: NDArray[np.int32]
    """[E + 1] stubs of the i-th replicated expert are first[i] .. first[i + 1]."""
    expert: NDArray[np.int32]
    """[E] id of the i-th replicated expert."""
    rank: NDArray[np.int32]
    """[E] inverse of `expert`."""
    device: NDArray[np.int32]
    """[N] device of each stub."""
    owner: NDArray[np.int32]
    """[N] index of the replicated expert of each stub."""
    slot: NDArray[np.int32]
    """[N] slot of each stub on its device."""
    flow: FloatArray
    """[N] tokens of each stub."""
    on: NDArray[np.int32]
    """[N] stubs, device by device: those of d are on[begin[d]] .. on[begin[d + 1]]."""
    begin: NDArray[np.int32]
    """[D + 1] see `on`."""
    load: FloatArray
    """[D] tokens per device, plus its constant offset."""
    order: NDArray[np.int32]
    """[D] scratch: stubs of one expert by utilisation."""
    queue: NDArray[np.int32]
    """[D] scratch: devices in breadth-first order."""
    seen: NDArray[np.bool_]
    """[D] scratch: device reached."""
    used: NDArray[np.bool_]
    """[E] scratch: replicated expert expanded."""
    parent: NDArray[np.int32]
    """[D] scratch: stub on the parent device; -1 for a root."""
    link: NDArray[np.int32]
    """[D] scratch: own stub of the same expert."""


@kernel
def new_flow(E: int, D: int, S: int) -> Flow:
    """Scratch for layers of E experts on D devices with S slots each."""
    N = D * S
    return Flow(
        np.empty(E, np.int32),
        np.empty(E + 1, np.int32),
        np.empty(E, np.int32),
        np.empty(E, np.int32),
        np.empty(N, np.int32),
        np.empty(N, np.int32),
        np.empty(N, np.int32),
        np.empty(N),
        np.empty(N, np.int32),
        np.empty(D + 1, np.int32),
        np.empty(D),
        np.empty(D, np.int32),
        np.empty(D, np.int32),
        np.empty(D, np.bool_),
        np.empty(E, np.bool_),
        np.empty(D, np.int32),
        np.empty(D, np.int32),
    )


@kernel
def list_stubs(f: Flow, experts: IntArray, p: LayerProblem) -> int:
    """Lists the replicas of replicated experts by expert and by device; loads the other ones."""
    D, S = experts.shape
    f.copies[:] = 0
    for d in range(D):
        for s in range(S):
            if experts[d, s] >= 0:
                f.copies[experts[d, s]] += 1
    n = 0
    f.first[0] = 0
    for e in range(f.copies.shape[0]):
        if f.copies[e] > 1:
            f.expert[n] = e
            f.rank[e] = n
            f.first[n + 1] = f.first[n] + f.copies[e]
            n += 1
    listed = 0
    for d in range(D):
        f.load[d] = p.offset[d]
        f.begin[d] = listed
        for s in range(S):
            e = experts[d, s]
            if e < 0:
                continue
            if f.copies[e] == 1:
                f.load[d] += p.load[e]
            else:
                i = f.rank[e]
                stub = f.first[i]
                f.first[i] += 1
                f.device[stub] = d
                f.owner[stub] = i
                f.slot[stub] = s
                f.on[listed] = stub
                listed += 1
    f.begin[D] = listed
    for i in range(n, 0, -1):
        f.first[i] = f.first[i - 1]
    f.first[0] = 0
    return n


@kernel
def slot_flow(f: Flow, experts: IntArray, load: FloatArray, d: int, s: int) -> float:
    """Tokens that slot s of device d serves in the solved layer."""
    e = experts[d, s]
    if f.copies[e] == 1:
        return load[e]
    i = f.rank[e]
    for stub in range(f.first[i], f.first[i + 1]):
        if f.device[stub] == d:
            return f.flow[stub]
    return 0.0
