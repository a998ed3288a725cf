"""What a shard holds and how that changes while it serves: ordered commands, cancellable, bounded.

A command carries an order `(term, number)`. One that is not newer than the newest seen changes
nothing, so late and repeated messages do no harm; a newer one ends what the one before still loads,
after the layer it is at. Loading goes layer by layer beside the calls (`kernels.slots`), at most as
fast as its budget, and never beyond the bytes the command allows.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from actors.descriptions import EXPERT, NO_ORDER, Held, Key, Order
from actors.experts.refusal import ModelRefused

log = logging.getLogger(__name__)


class Kernel(Protocol):
    """The part of `ExpertKernel` that this needs."""

    @property
    def bytes_per_expert(self) -> int: ...

    def load(self, layer: int, experts: list[int]) -> None: ...


class Holdings:
    """Obeys commands from several threads; answers what is held at any time."""

    def __init__(self, kernel: Kernel, changed: Callable[[], None]) -> None:
        """changed: called in the loading thread after copies came or went."""
        self._kernel = kernel
        self._changed = changed
        self._working = threading.Lock()
        self._newer = threading.Condition()
        self._layers: dict[int, list[int]] = {}
        self._now = Held(0, NO_ORDER, frozenset(), frozenset(), "")

    @property
    def now(self) -> Held:
        return self._now

    def prepare(
        self, order: Order, keys: frozenset[Key], most_bytes: int, bytes_per_s: float
    ) -> Held:
        """Load `keys` beside what is held; returns when that is done, cancelled or failed.

        most_bytes: of all copies together, held and loaded.
        """
        if not self._accept(order, keys):
            return self._now
        with self._working:
            missing = keys - self._now.holdings
            need = (len(self._now.holdings) + len(missing)) * self._kernel.bytes_per_expert
            failure = ""
            if need > most_bytes:
                failure = f"{need} bytes are needed, {most_bytes} are allowed"
            elif self._now.order == order:
                failure = self._load(order, missing, bytes_per_s)
            self._end(order, failure)
        self._changed()
        return self._now

    def retire(self, order: Order, keys: frozenset[Key]) -> Held:
        """Drop `keys`. Idempotent."""
        if not self._accept(order, frozenset()):
            return self._now
        with self._working:
            for layer, experts in sorted(_by_layer(keys).items()):
                kept = [expert for expert in self._layers.get(layer, []) if expert not in experts]
                if kept != self._layers.get(layer, []):
                    self._kernel.load(layer, kept)
                    self._layers[layer] = kept
            self._end(order, "")
        self._changed()
        return self._now

    def cancel(self, order: Order) -> Held:
        """Stop loading; returns when nothing loads any more."""
        if self._accept(order, frozenset()):
            with self._working:
                self._end(order, "")
        return self._now

    def _accept(self, order: Order, loading: frozenset[Key]) -> bool:
        """Whether the command is the newest; what the one before still loads then ends."""
        with self._newer:
            if order <= self._now.order:
                return False
            now = self._now
            self._now = Held(now.revision + 1, order, now.holdings, loading - now.holdings, "")
            self._newer.notify_all()
            return True

    def _load(self, order: Order, missing: frozenset[Key], bytes_per_s: float) -> str:
        """Layer by layer; returns why it failed, "" if it did not."""
        began_s, loaded = time.monotonic(), 0
        for layer, experts in sorted(_by_layer(missing).items()):
            wanted = [*self._layers.get(layer, []), *experts]
            try:
                self._kernel.load(layer, wanted)
            except (ModelRefused, OSError, MemoryError, RuntimeError) as error:
                log.warning("layer %d could not be loaded", layer, exc_info=True)
                return f"layer {layer}: {error}"
            self._layers[layer] = wanted
            self._take(order)
            loaded += len(experts) * self._kernel.bytes_per_expert
            if self._superseded(order, began_s + loaded / bytes_per_s - time.monotonic()):
                return "a newer command came"
        return ""

    def _superseded(self, order: Order, pause_s: float) -> bool:
        """Wait out the budget; whether a newer command came meanwhile."""
        with self._newer:
            return self._newer.wait_for(lambda: self._now.order != order, max(0.0, pause_s))

    def _take(self, order: Order) -> None:
        holdings = frozenset(
            (EXPERT, layer, expert) for layer, held in self._layers.items() for expert in held
        )
        with self._newer:
            now = self._now
            self._now = Held(
                now.revision + 1, now.order, holdings, now.loading - holdings, now.failure
            )

    def _end(self, order: Order, failure: str) -> None:
        self._take(order)
        with self._newer:
            now = self._now
            if now.order == order:
                self._now = Held(now.revision + 1, order, now.holdings, frozenset(), failure)


def _by_layer(keys: Iterable[Key]) -> dict[int, list[int]]:
    by_layer: dict[int, list[int]] = {}
    for _, layer, expert in sorted(keys):
        by_layer.setdefault(layer, []).append(expert)
    return by_layer
