"""Native expert weights to bf16 or fp32, on any device.

MXFP4 is exact in both. FP8 times an fp32 scale is rounded to nearest in bf16 (relative 2^-9), and
exact there when scales are powers of two, as DeepSeek-V4's are.
"""

import functools

import torch

from actors.experts.checkpoint import ExpertTensors

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP8_BLOCK = 128
MXFP4_BLOCK = 32
FLOAT32_MANTISSA_BITS = 23


def dequantise_gate_up(expert: ExpertTensors, dtype: torch.dtype) -> torch.Tensor:
    """w13 [2I, H] of one expert. FP8 blocks start anew at the first up row."""
    if expert.w13.dtype is torch.float8_e4m3fn:
        assert expert.w13_scale is not None
        halves = zip(expert.w13.chunk(2), expert.w13_scale.chunk(2), strict=True)
        return torch.cat([dequantise(weight, scale, dtype) for weight, scale in halves])
    return dequantise(expert.w13, expert.w13_scale, dtype)


def dequantise(
    weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """One matrix [out, in] in `dtype`, from any format of `ExpertTensors`."""
    if scale is None:
        return weight.to(dtype)
    bytes_of = weight.view(torch.uint8)
    if weight.dtype is torch.float8_e4m3fn:
        # By table: ten times faster than torch's own conversion on a CPU.
        values = _e4m3_values(weight.device).index_select(0, bytes_of.flatten().int())
        rows, columns = weight.shape
        blocks = scale.repeat_interleave(FP8_BLOCK, 0)[:rows]
        blocks = blocks.repeat_interleave(FP8_BLOCK, 1)[:, :columns]
        return (values.view(rows, columns) * blocks).to(dtype)
    pairs = e2m1_pairs(weight.device, dtype).index_select(0, bytes_of.flatten().int())
    grouped = pairs.view(dtype).view(weight.shape[0], -1, MXFP4_BLOCK)
    return (grouped * power_of_two(scale).to(dtype).unsqueeze(-1)).flatten(1)


def power_of_two(e8m0: torch.Tensor) -> torch.Tensor:
    """fp32 2 ** (byte - 127), the byte being fp32's own exponent; byte 0 (2^-127) reads as 0."""
    return (e8m0.int() << FLOAT32_MANTISSA_BITS).view(torch.float32)


@functools.cache
def _e4m3_values(device: torch.device) -> torch.Tensor:
    """[256] fp32: the value of every e4m3 byte."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().to(device)


@functools.cache
def e2m1_pairs(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """[256]: the two values of every byte, low nibble first, in `dtype` side by side in one
    integer, so that one look-up fetches both."""
    nibble = torch.tensor(E2M1_VALUES + tuple(-value for value in E2M1_VALUES), dtype=dtype)
    byte = torch.arange(256)
    pairs = torch.stack([nibble[byte & 15], nibble[byte >> 4]], 1)
    as_integer = torch.int32 if dtype.itemsize == 2 else torch.int64
    return pairs.view(as_integer).flatten().to(device)


def to_bf16(expert: ExpertTensors) -> ExpertTensors:
    """The whole expert in bf16, without scales."""
    return ExpertTensors(
        w13=dequantise_gate_up(expert, torch.bfloat16),
        w2=dequantise(expert.w2, expert.w2_scale, torch.bfloat16),
        w13_bias=expert.w13_bias,
        w2_bias=expert.w2_bias,
    )
