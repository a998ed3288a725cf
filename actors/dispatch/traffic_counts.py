"""Assignments by kind of traffic and content, on their way from a worker's steps to the controller.

The worker's thread adds what a step counted; the subscription's thread takes all that was added
since it last did and sends it. So what is lost with a process is one window.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.traffic import OTHER

TEXT = "text"
"""Content of tokens that stand for themselves; others have the name of what they stand for, such as
"image"."""
MAX_KEYS = 40
"""Kinds times contents that one process counts by; what comes then is `OTHER`."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, order=True)
class TrafficKey:
    """What is counted together."""

    kind: str
    content: str = TEXT


@dataclass(frozen=True, slots=True, eq=False)
class TrafficWindow:
    """layers: the model's, one a row. tokens: [N], of each key. counts: [N, L, E] assignments.

    All estimated from the steps that were counted.
    """

    layers: tuple[int, ...]
    keys: tuple[TrafficKey, ...]
    tokens: Counts
    counts: Counts


class TrafficCounts:
    """For two threads."""

    def __init__(self, layers: Sequence[int], num_experts: int) -> None:
        self.layers = tuple(layers)
        self.num_experts = num_experts
        self.row_of = {layer: row for row, layer in enumerate(self.layers)}
        self._lock = threading.Lock()
        self._tokens: dict[TrafficKey, int] = {}
        self._counts: dict[TrafficKey, Counts] = {}

    def add(
        self, keys: Sequence[TrafficKey], tokens: Counts, counts: npt.NDArray[np.integer[Any]]
    ) -> None:
        """tokens: [N]; counts: [N, L, E]; what a step stands for."""
        with self._lock:
            for number, wanted in enumerate(keys):
                key = self._place(wanted)
                if key not in self._counts:
                    self._tokens[key] = 0
                    self._counts[key] = np.zeros((len(self.layers), self.num_experts), np.int64)
                self._tokens[key] += int(tokens[number])
                self._counts[key] += counts[number]

    def take(self) -> TrafficWindow | None:
        """What was added since the last call; None: nothing."""
        with self._lock:
            tokens, self._tokens = self._tokens, {}
            counts, self._counts = self._counts, {}
        if not counts:
            return None
        keys = tuple(sorted(counts))
        return TrafficWindow(
            self.layers,
            keys,
            np.array([tokens[key] for key in keys], np.int64),
            np.stack([counts[key] for key in keys]),
        )

    def _place(self, key: TrafficKey) -> TrafficKey:
        known = key in self._counts or len(self._counts) < MAX_KEYS
        return key if known else TrafficKey(OTHER)
