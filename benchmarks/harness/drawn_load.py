"""Expert calls of a drawn popularity, given to a mesh's shards by the dispatcher that engines have.

No engine takes part: rows are random, the experts of each row are drawn without replacement, and
the calls go through the product's own dispatcher, which follows the mesh's plan epochs.
"""

import threading
import time
from typing import Self

import numpy as np
import torch

from actors.dispatch.dispatcher import Dispatcher
from actors.dispatch.subscription import Subscription
from actors.experts.spec import ExpertSpec
from actors.wire.address import parse_address
from benchmarks.planner_served import choices

FIRST_VIEW_TIMEOUT_S = 30.0
ROWS = 256
"""Of a call. In small calls reading an expert's weights costs more than its rows, and dispatchers,
who even out time, leave the rows uneven on every placement."""
PAUSE_S = 0.05
"""Between two steps: shards, controller and planner share the machine's cores."""


class DrawnLoad:
    """Steps of `ROWS` rows through every layer, one after the other, until the block is left.

    popularity: [L, E], may be replaced while it runs. failed: why a step failed, empty if none.
    """

    def __init__(self, directory: str, spec: ExpertSpec, popularity: np.ndarray, seed: int) -> None:
        self.popularity = popularity
        self.steps = 0
        self.failed = ""
        self._spec = spec
        self._random = np.random.default_rng(seed)
        # Links within one machine need no secret.
        self._views = Subscription(parse_address(directory), b"", "external")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._views.start(FIRST_VIEW_TIMEOUT_S)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._views.stop()

    def _run(self) -> None:
        dispatcher = Dispatcher(self._views, b"")
        try:
            while not self._stop.is_set():
                self._step(dispatcher)
                self.steps += 1
                time.sleep(PAUSE_S)
        except Exception as error:
            self.failed = repr(error)
        finally:
            dispatcher.close()

    def _step(self, dispatcher: Dispatcher) -> None:
        rows = torch.randn(ROWS, self._spec.hidden_size, dtype=torch.bfloat16)
        weights = torch.full((ROWS, self._spec.top_k), 1.0 / self._spec.top_k)
        for layer, popularity in zip(self._spec.layers, self.popularity, strict=True):
            ids = torch.from_numpy(choices(self._random, popularity, ROWS, self._spec.top_k))
            dispatcher.wait(dispatcher.send(layer, rows, weights, ids))
