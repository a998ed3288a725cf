"""What load to plan for: smoothed, split by kind of traffic, quick to see a burst.

Each kind of traffic (chat, code, a tenant: whatever the caller tells apart) has its own histogram
per layer, an exponentially weighted mean of expert shares; experts hot in one kind are often cold
in another, so a change of the mix must not look like drift. The forecast is the histograms weighed
by the recent mix. Updates are pure: `observe` returns a new model, no clock is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from placement.types import FloatArray
from placement.validation import check_load

MEMORY = 0.7
"""Weight of the past in the mean, per window: half-life of about two windows."""

BURST_MEMORY = 0.2
"""The same for a layer in a burst: the past is mostly wrong there."""

BURST_SIGMAS = 6.0
"""Deviations, in standard deviations of the usual change, that make a window a burst."""

CHANGE_MEMORY = 0.9
"""Weight of the past in the usual change and its spread."""

FEWEST_WINDOWS = 3
"""Windows before the usual change is known well enough to call anything a burst."""


@dataclass(frozen=True, slots=True)
class KindLoad:
    """How one kind of traffic loads the experts."""

    shares: FloatArray
    """[L, E] smoothed share of a layer's tokens."""
    tokens: float
    """Smoothed tokens per layer and window."""
    change: FloatArray
    """[L] usual change from window to window: half the L1 distance of shares."""
    spread: FloatArray
    """[L] mean absolute deviation of that."""
    windows: int
    burst: FloatArray
    """[L] how many spreads above usual the last change was; 0 below `FEWEST_WINDOWS`."""


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Smoothed load per kind of traffic; start with `LoadModel()`."""

    kinds: Mapping[str, KindLoad] = field(default_factory=dict)

    def observe(self, counts: ArrayLike, kind: str = "") -> LoadModel:
        """Model after one more window: counts [L, E] tokens of one kind."""
        tokens = check_load(counts, "counts")
        known = self.kinds.get(kind)
        if known is not None and known.shares.shape != tokens.shape:
            raise ValueError(
                f"counts of traffic kind {kind!r} have shape {tokens.shape}, "
                f"earlier ones had {known.shares.shape}"
            )
        seen = _first(tokens) if known is None else _next(known, tokens)
        return replace(self, kinds={**self.kinds, kind: seen})

    def quiet(self, kind: str) -> LoadModel:
        """Model after a window without any tokens of a kind: its histogram stays, its part fades.

        Raises `KeyError` for a kind never observed.
        """
        known = self.kinds[kind]
        faded = replace(known, tokens=MEMORY * known.tokens)
        return replace(self, kinds={**self.kinds, kind: faded})

    def forecast(self, mix: Mapping[str, float] | None = None) -> FloatArray:
        """[L, E] expected tokens per window; `mix` replaces the recent tokens per kind.

        Raises:
            ValueError: nothing observed yet.
        """
        if not self.kinds:
            raise ValueError("forecast: no window observed yet")
        total = np.zeros_like(next(iter(self.kinds.values())).shares)
        for name, seen in self.kinds.items():
            total += seen.shares * (seen.tokens if mix is None else mix.get(name, 0.0))
        return total

    def bursting_layers(self) -> list[int]:
        """Layers in which some kind of traffic changed far beyond its usual."""
        found: set[int] = set()
        for seen in self.kinds.values():
            found.update(int(layer) for layer in np.flatnonzero(seen.burst > BURST_SIGMAS))
        return sorted(found)


def _first(tokens: FloatArray) -> KindLoad:
    L = tokens.shape[0]
    return KindLoad(
        shares=_shares(tokens, np.full(tokens.shape, 1.0 / tokens.shape[1])),
        tokens=float(tokens.sum()) / L,
        change=np.zeros(L),
        spread=np.zeros(L),
        windows=1,
        burst=np.zeros(L),
    )


def _next(known: KindLoad, tokens: FloatArray) -> KindLoad:
    shares = _shares(tokens, known.shares)
    moved = np.abs(shares - known.shares).sum(axis=1) / 2
    surprise = np.zeros(moved.shape[0])
    if known.windows >= FEWEST_WINDOWS:
        # A spread below a tenth of the usual change would call sampling noise a burst.
        spread = np.maximum(known.spread, known.change / 10) + np.finfo(float).tiny
        surprise = (moved - known.change) / spread
    bursting = surprise > BURST_SIGMAS
    memory = np.where(bursting, BURST_MEMORY, MEMORY)[:, None]
    # The first windows average plainly; bursts do not teach what is usual.
    learn = min(CHANGE_MEMORY, 1 - 1 / known.windows)
    change = np.where(bursting, known.change, learn * known.change + (1 - learn) * moved)
    off = np.abs(moved - change)
    return KindLoad(
        shares=memory * known.shares + (1 - memory) * shares,
        tokens=MEMORY * known.tokens + (1 - MEMORY) * float(tokens.sum()) / tokens.shape[0],
        change=change,
        spread=np.where(bursting, known.spread, learn * known.spread + (1 - learn) * off),
        windows=known.windows + 1,
        burst=surprise,
    )


def _shares(tokens: FloatArray, otherwise: FloatArray) -> FloatArray:
    """[L, E] shares of each layer's tokens; `otherwise` where a layer has none."""
    total = tokens.sum(axis=1, keepdims=True)
    return np.where(total > 0, tokens / np.where(total > 0, total, 1.0), otherwise)
