"""Splits the tokens of every expert over its replicas so that the slowest device is fastest."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from native.kernel import entry, kernel
from placement.problem import Problem, layer_of
from placement.search.flow import solve
from placement.search.replicas import Flow, new_flow
from placement.types import FloatArray, IntArray
from placement.validation import check_experts, check_problem


def split_tokens(experts: ArrayLike, counts: ArrayLike, speed: ArrayLike) -> FloatArray:
    """Shares the counted tokens out over the replicas, minimising the slowest device's time.

    Args:
        experts: int [L, D, S] expert id per slot, -1 for empty.
        counts: float [L, E] tokens per expert.
        speed: float [D] relative speed, > 0.

    Returns:
        float64 [L, D, S] tokens per slot.

    Raises:
        ValueError: bad shapes or values, or an expert with tokens that no device holds.
    """
    problem = check_problem(counts, speed, name="counts")
    (L, E), load = problem.load.shape, problem.load
    placed = check_experts(experts, L, problem.devices, E, "experts")
    held = np.zeros((L, E), np.bool_)
    layer, device, slot = np.nonzero(placed >= 0)
    held[layer, placed[layer, device, slot]] = True
    missing = np.argwhere(~held & (load > 0))
    if missing.size:
        raise ValueError(f"experts: layer {missing[0, 0]} holds no copy of expert {missing[0, 1]}")
    return split_layers(placed, problem)


@entry
def split_layers(experts: IntArray, p: Problem) -> FloatArray:
    """float64 [L, D, S] tokens per slot of experts [L, D, S]; see `split_tokens`."""
    L, D, S = experts.shape
    shares = np.zeros((L, D, S))
    f = new_flow(p.load.shape[1], D, S)
    for layer in range(L):
        solve(f, experts[layer], layer_of(p, layer))
        copy_shares(f, experts[layer], p.load[layer], shares[layer])
    return shares


@kernel
def copy_shares(f: Flow, experts: IntArray, load: FloatArray, shares: FloatArray) -> None:
    """Copies a solved layer's flows into shares [D, S]."""
    D, S = experts.shape
    for d in range(D):
        for s in range(S):
            e = experts[d, s]
            if e >= 0 and f.copies[e] == 1:
                shares[d, s] = load[e]
    for at in range(f.begin[D]):
        shares[f.device[at], f.slot[at]] = f.flow[at]
