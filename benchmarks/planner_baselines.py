"""The placements of others, on the terms they are used on.

Both know neither speed nor memory, need as many slots on every device, and give each replica an
equal part of its expert's tokens. `evenly_split` measures them so; the benchmark also shows their
placements under our split.
"""

from __future__ import annotations

import numpy as np


def plan_greedy(load: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """DeepSeek-EPLB style: replicate the hottest per copy, pack heaviest first on the least loaded.

    load [L, E]; slots [D], here allowed to differ so that it has an answer in all cases.
    Returns int32 [L, D, S].
    """
    L, E = load.shape
    D = slots.shape[0]
    experts = np.full((L, D, int(slots.max())), -1, np.int32)
    for layer in range(L):
        copies = np.ones(E, int)
        for _ in range(int(slots.sum()) - E):
            copies[np.argmax(load[layer] / copies)] += 1
        owners = np.repeat(np.arange(E), copies)
        pieces = (load[layer] / copies)[owners]
        held, used = np.zeros(D), np.zeros(D, int)
        for k in np.argsort(-pieces, kind="stable"):
            device = int(np.argmin(np.where(used < slots, held, np.inf)))
            experts[layer, device, used[device]] = owners[k]
            held[device] += pieces[k]
            used[device] += 1
    return experts


def plan_vllm(load: np.ndarray, slots: np.ndarray) -> np.ndarray | None:
    """vLLM's own EPLB policy; None where it cannot plan (slots differ) or is not installed."""
    if np.unique(slots).size > 1:
        return None
    try:
        import torch
        from vllm.distributed.eplb.policy.default import DefaultEplbPolicy
    except ImportError:
        return None
    D, S = slots.shape[0], int(slots[0])
    physical = DefaultEplbPolicy.rebalance_experts(torch.from_numpy(load), D * S, 1, 1, D)
    return np.asarray(physical, dtype=np.int32).reshape(load.shape[0], D, S)


def evenly_split(experts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float64 [L, D] tokens per device if every replica gets an equal part."""
    L, D, _ = experts.shape
    tokens = np.zeros((L, D))
    for layer in range(L):
        device, slot = np.nonzero(experts[layer] >= 0)
        ids = experts[layer, device, slot]
        copies = np.bincount(ids, minlength=counts.shape[1])
        np.add.at(tokens[layer], device, (counts[layer] / np.maximum(copies, 1))[ids])
    return tokens


def without_twins(experts: np.ndarray) -> np.ndarray:
    """The placement with second copies on the same device emptied, as our split demands."""
    clean = experts.copy()
    for slot in range(1, clean.shape[2]):
        twin = (clean[:, :, :slot] == clean[:, :, slot : slot + 1]).any(axis=2)
        clean[:, :, slot][twin] = -1
    return clean
