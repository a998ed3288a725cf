"""What each kind of traffic asks of the experts: bodies of `/api/v1/load?kind=`, and what they are
made of.

Engines estimate the assignments of a kind from some of their steps (`actors.vllm_plugin.
traffic_steps`) and tell what is new every two seconds. Here that is added up with a half-life, so
that shares follow the traffic. Kinds are few (`actors.traffic`), so memory is bounded: 16 MB for 61
layers of 384 experts and all kinds there can be, without pictures. It is lost with the controller's
process and comes again with the traffic. The planner does not use it: shards count exactly.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.dispatch.traffic_counts import TrafficKey, TrafficWindow
from actors.traffic import Kinds
from orchestrator.expert_load import TrafficTokens

HALF_LIFE_S = 600.0
"""After which an assignment counts for half of a new one."""

Load = npt.NDArray[np.float64]
"""[L, E] assignments, older ones counting for less."""


@dataclass(slots=True, eq=False)
class _Kept:
    """load: as of at_s. tokens: since this process began."""

    load: Load
    at_s: float
    tokens: int = 0

    def add(self, tokens: int, counts: npt.NDArray[np.int64], now_s: float) -> None:
        self.load = self.faded(now_s) + counts
        self.at_s, self.tokens = now_s, self.tokens + tokens

    def faded(self, now_s: float) -> Load:
        faded: Load = self.load * 0.5 ** ((now_s - self.at_s) / HALF_LIFE_S)
        return faded


@dataclass(frozen=True, slots=True, eq=False)
class KindLoad:
    """content: None for all of the kind's. tokens: since the controller began. load: what experts
    are asked for, recent assignments counting for more."""

    model: str
    kind: str
    content: str | None
    layers: tuple[int, ...]
    tokens: int
    load: Load

    @property
    def shares(self) -> Load:
        """[L, E], of each layer's load; zeros where a layer has none."""
        totals = self.load.sum(axis=1, keepdims=True)
        return np.divide(self.load, totals, out=np.zeros(self.load.shape), where=totals > 0)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "kind": self.kind,
            "content": self.content,
            "layers": list(self.layers),
            "tokens": self.tokens,
            "half_life_s": HALF_LIFE_S,
            "shares": self.shares.round(6).tolist(),
        }


class TrafficLoad:
    """Kept by the controller."""

    def __init__(
        self,
        model: str,
        layers: tuple[int, ...],
        num_experts: int,
        kinds: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """kinds: names that are told apart; empty: the first that come."""
        self._model, self._layers, self._num_experts = model, layers, num_experts
        self._kinds = Kinds(kinds)
        self._clock = clock
        self._kept: dict[TrafficKey, _Kept] = {}

    def add(self, window: TrafficWindow) -> None:
        """Raises ValueError: it is of another model."""
        now_s = self._clock()
        shape = (len(self._layers), self._num_experts)
        if window.layers != self._layers or window.counts.shape[1:] != shape:
            raise ValueError(f"load by kind of traffic is of {window.counts.shape}, not of {shape}")
        for key, tokens, counts in zip(window.keys, window.tokens, window.counts, strict=True):
            known = TrafficKey(self._kinds.admit(key.kind, now_s), key.content)
            if known not in self._kept:
                self._kept[known] = _Kept(np.zeros(shape), now_s)
            self._kept[known].add(int(tokens), counts, now_s)
        self._kept = {key: kept for key, kept in self._kept.items() if self._kinds.has(key.kind)}

    @property
    def tokens(self) -> tuple[TrafficTokens, ...]:
        keys = sorted(self._kept)
        return tuple(TrafficTokens(k.kind, k.content, self._kept[k].tokens) for k in keys)

    def of(self, kind: str, content: str | None) -> KindLoad | None:
        """None: there was none of that."""
        found = [
            kept
            for key, kept in self._kept.items()
            if key.kind == kind and content in (None, key.content)
        ]
        if not found:
            return None
        now_s = self._clock()
        load = np.sum([kept.faded(now_s) for kept in found], axis=0)
        tokens = sum(kept.tokens for kept in found)
        return KindLoad(self._model, kind, content, self._layers, tokens, load)
