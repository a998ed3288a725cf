"""Number formats of quantised checkpoints: block FP8 (e4m3) and MXFP4 (e2m1 with e8m0 scales).

Both quantisers return the packed tensors together with the exact float32 values they stand for, so
that one set of master weights can be written in several formats that hold the same numbers.
Sources: the OCP Microscaling Formats specification v1.0 (MXFP4) and the released DeepSeek-V3/V4
checkpoints (FP8 in blocks of 128 x 128, power-of-two scales).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MXFP4_BLOCK = 32
"""Consecutive input columns that share one e8m0 scale."""

FP8_BLOCK = 128
"""Rows and columns of a tile that shares one scale."""

E2M1_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""Value of each of the 16 e2m1 codes."""

_E2M1_MIDPOINTS = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5])
_E2M1_MAX_EXPONENT = 2
_E4M3_MAX = 448.0


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantised matrix `[out, in]`: packed `data`, its `scale`, and the `values` they mean."""

    data: Tensor
    scale: Tensor
    values: Tensor


def quantize_mxfp4(weight: Tensor) -> Quantized:
    """Round `weight` [out, in] to MXFP4; `in` must be a multiple of 32.

    Returns data int8 [out, in / 2] (even column in the low nibble), scale e8m0 [out, in / 32],
    values float32 [out, in].
    """
    rows, columns = weight.shape
    blocks = weight.view(rows, columns // MXFP4_BLOCK, MXFP4_BLOCK)
    largest = blocks.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.exp2((largest.log2().floor() - _E2M1_MAX_EXPONENT).clamp(-127, 127))
    normed = blocks / scale[..., None]
    magnitude = torch.bucketize(normed.abs(), _E2M1_MIDPOINTS, out_int32=True)
    codes = magnitude + 8 * normed.signbit()
    values = (E2M1_VALUES[codes] * scale[..., None]).view(rows, columns)
    nibbles = codes.view(rows, columns).to(torch.uint8)
    data = (nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)).view(torch.int8)
    return Quantized(data, scale.to(torch.float8_e8m0fnu), values)


def quantize_fp8_blocks(weight: Tensor) -> Quantized:
    """Round `weight` [out, in] to e4m3 in 128 x 128 tiles; both sides must be multiples of 128.

    Returns data e4m3 [out, in], scale float32 (powers of two) [out / 128, in / 128], values float32
    [out, in].
    """
    rows, columns = weight.shape
    tiles = weight.view(rows // FP8_BLOCK, FP8_BLOCK, columns // FP8_BLOCK, FP8_BLOCK)
    scale = torch.exp2((tiles.abs().amax((1, 3)) / _E4M3_MAX).log2().ceil())
    data = (tiles / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    values = (data.float() * scale[:, None, :, None]).view(rows, columns)
    return Quantized(data.view(rows, columns), scale, values)
