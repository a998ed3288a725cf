"""A load that drifts, for tests of traces and of policies."""

import numpy as np
import pytest

from placement.trace import Trace


@pytest.fixture
def trace() -> Trace:
    rng = np.random.default_rng(0)
    base = rng.lognormal(0, 1, (2, 32))
    counts = []
    for _ in range(6):
        base *= rng.lognormal(0, 0.3, base.shape)
        counts.append(rng.poisson(base * 200))
    T = len(counts)
    return Trace(np.array(counts), np.arange(T) * 30.0, np.full(T, 30.0), ("chat", "code") * 3)
