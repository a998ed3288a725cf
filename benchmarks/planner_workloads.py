"""Synthetic expert loads that drift, jump and fluctuate the way routed tokens do.

Popularity is a fixed base (Zipf, log-normal or nearly uniform) plus a slow AR(1) drift in log
space; every batch adds its own log-normal noise and multinomial sampling noise. An expert is chosen
at most once per token, so no expert gets more than 1 / top_k of the assignments.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

DRIFT_MEMORY = 0.9
"""AR(1) coefficient of the drift from one window to the next."""

DRIFT_SIGMA = 0.35
"""Stationary standard deviation of the drift, in log popularity."""

BATCH_SIGMA = 0.25
"""Standard deviation of one batch's own deviation, in log popularity."""

CAP_ROUNDS = 6
"""Rounds of clip-and-renormalise that hold every probability under 1 / top_k."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model on a cluster: layers x experts, devices with speed and slots, and a load kind."""

    name: str
    layers: int
    experts: int
    top_k: int
    speed: np.ndarray
    slots: np.ndarray
    kind: str = "zipf"
    windows: int = 8
    batches: int = 16
    tokens: int = 32768
    swap_at: int | None = None
    swap_fraction: float = 0.3
    seed: int = 0
    tags: frozenset[str] = field(default_factory=frozenset)

    @property
    def devices(self) -> int:
        return int(self.speed.shape[0])


def draw(case: Case) -> np.ndarray:
    """int64 [windows, batches, L, E] tokens per expert; reproducible from `case.seed`."""
    rng = np.random.default_rng(case.seed)
    shape = (case.layers, case.experts)
    base = _base(rng, case.kind, shape)
    drift = rng.normal(0, DRIFT_SIGMA, shape)
    counts = np.empty((case.windows, case.batches, *shape), np.int64)
    per_batch = case.tokens // case.batches * case.top_k
    for window in range(case.windows):
        if window:
            fresh = rng.normal(0, DRIFT_SIGMA, shape)
            drift = DRIFT_MEMORY * drift + np.sqrt(1 - DRIFT_MEMORY**2) * fresh
        if window == case.swap_at:
            base = _swap(rng, base, case.swap_fraction)
        noise = rng.normal(0, BATCH_SIGMA, (case.batches, *shape))
        counts[window] = rng.multinomial(
            per_batch, _probabilities(base + drift + noise, case.top_k)
        )
    return counts


def _base(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    if kind == "zipf":
        rank = np.tile(-np.log(np.arange(1, shape[1] + 1)), (shape[0], 1))
        return rng.permuted(rank, axis=1)
    sigma = {"lognormal": 1.0, "uniform": 0.05}[kind]
    return rng.normal(0, sigma, shape)


def _swap(rng: np.random.Generator, base: np.ndarray, fraction: float) -> np.ndarray:
    swapped = base.copy()
    for row in swapped:
        chosen = rng.choice(row.shape[0], int(row.shape[0] * fraction), replace=False)
        row[chosen] = row[rng.permutation(chosen)]
    return swapped


def _probabilities(logits: np.ndarray, top_k: int) -> np.ndarray:
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    for _ in range(CAP_ROUNDS):
        p = np.minimum(p, 0.98 / top_k)
        p /= p.sum(axis=-1, keepdims=True)
    return p
