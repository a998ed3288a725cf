"""Load of layers that route by token id through a fixed table, as DeepSeek-V4's first layers do.

Their load needs no measuring: it follows from the tokens themselves, even before they are served.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from placement.types import FloatArray


def hash_routed_load(token_counts: ArrayLike, table: ArrayLike, experts: int) -> FloatArray:
    """float64 [E]: tokens each expert will get.

    token_counts: [V] how often each token id occurs; table: int [V, K] experts of each token id.

    Raises:
        ValueError: shapes that do not fit, negative counts, or expert ids outside the layer.
    """
    counts = np.asarray(token_counts, np.float64)
    routed = np.asarray(table)
    if counts.ndim != 1 or routed.ndim != 2 or routed.shape[0] != counts.shape[0]:
        raise ValueError(
            f"token_counts [V] and table [V, K] must agree, got {counts.shape} and {routed.shape}"
        )
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError("token_counts must be finite and >= 0")
    if routed.size and (routed.min() < 0 or routed.max() >= experts):
        raise ValueError(f"table names experts outside 0 .. {experts - 1}")
    weights = np.repeat(counts, routed.shape[1])
    load = np.bincount(routed.ravel(), weights=weights, minlength=experts)
    return load.astype(np.float64)
