"""bf16 bits in numba, which has no such type: the upper half of fp32's."""

import numpy as np

from native.compiled import compiled


@compiled(inline="always")
def round_to_bf16(bits):  # type: ignore[no-untyped-def]
    """bf16 bits of fp32 bits, to nearest even; any NaN becomes the quiet one.

    Without a branch and in 32 bits throughout (numba widens sums), so that loops are vectorised.
    """
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd)
    is_nan = np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(np.uint32(0x7FC0) if is_nan else np.uint32(rounded >> np.uint32(16)))
