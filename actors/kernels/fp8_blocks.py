"""FP8 block scales in the form vLLM's CPU kernels want.

A checkpoint has one scale per 128x128 block, counted from the first gate row and again from the
first up row. The kernels take w13 as one matrix, so where I is no multiple of 128 the up blocks
would start inside a gate block: there, scales are repeated for blocks of fewer rows.
"""

import math
from dataclasses import replace

import torch

from actors.experts.checkpoint import ExpertTensors

BLOCK = 128


def kernel_block_rows(intermediate_size: int) -> int:
    """Rows per scale that fit both gate and up: the largest divisor of 128 that divides I."""
    return math.gcd(intermediate_size, BLOCK)


def kernel_scales(expert: ExpertTensors) -> ExpertTensors:
    """`expert` (fp8) with scales for blocks of `kernel_block_rows(I)` rows and 128 columns."""
    assert expert.w13_scale is not None
    assert expert.w2_scale is not None
    hidden_size, intermediate_size = expert.w2.shape
    block = kernel_block_rows(intermediate_size)
    if block == BLOCK:
        return expert
    gate, up = (_repeat(scale, block, intermediate_size) for scale in expert.w13_scale.chunk(2))
    return replace(
        expert,
        w13_scale=torch.cat([gate, up]),
        w2_scale=_repeat(expert.w2_scale, block, hidden_size),
    )


def _repeat(scale: torch.Tensor, block: int, rows: int) -> torch.Tensor:
    """Scales per 128 rows -> scales per `block` rows of a matrix with `rows` rows."""
    return scale.repeat_interleave(BLOCK // block, 0)[: -(-rows // block)]
