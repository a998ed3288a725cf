"""Block quantisation as DeepSeek-V4 is released: MXFP4 experts, FP8 128x128 dense layers.

One implementation serves both quantisation-aware training (``fake_*``: rounded forward, straight
gradient) and the converter (``pack_*``: the stored bytes), so that training sees exactly the
weights that are shipped. Scales are powers of two (e8m0) in both formats.
"""

import torch

FP4_BLOCK = 32
"""MXFP4: this many consecutive columns share a scale."""
FP8_BLOCK = 128
"""FP8: a square block of this side shares a scale."""
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4_MAX_EXPONENT = 2
"""6.0 = 1.5 * 2**2 is the largest e2m1 value."""
FP8_MAX = 448.0
TINY = 1e-30


def mxfp4_scales(weight: torch.Tensor) -> torch.Tensor:
    """Power-of-two scales ``[..., rows, columns / 32]`` of ``weight [..., rows, columns]``."""
    blocks = weight.unflatten(-1, (-1, FP4_BLOCK))
    exponent = torch.floor(torch.log2(blocks.abs().amax(-1).clamp(min=TINY)))
    return torch.exp2((exponent - FP4_MAX_EXPONENT).clamp(-127, 127))


def round_e2m1(scaled: torch.Tensor) -> torch.Tensor:
    """The nearest e2m1 value (ties to even steps), saturating at 6."""
    magnitude = scaled.abs()
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return torch.sign(scaled) * (torch.round(magnitude / step) * step).clamp(max=FP4_VALUES[-1])


def round_mxfp4(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` with every value replaced by the one MXFP4 stores."""
    scales = mxfp4_scales(weight).unsqueeze(-1)
    blocks = weight.unflatten(-1, (-1, FP4_BLOCK))
    return (round_e2m1(blocks / scales) * scales).flatten(-2)


def fp8_scales(weight: torch.Tensor) -> torch.Tensor:
    """Power-of-two scales ``[rows / 128, columns / 128]`` of ``weight [rows, columns]``."""
    blocks = weight.unflatten(1, (-1, FP8_BLOCK)).unflatten(0, (-1, FP8_BLOCK))
    return torch.exp2(torch.ceil(torch.log2(blocks.abs().amax((1, 3)).clamp(min=TINY) / FP8_MAX)))


def expand_fp8_scales(scales: torch.Tensor) -> torch.Tensor:
    return scales.repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1)


def round_fp8(weight: torch.Tensor) -> torch.Tensor:
    """``weight [rows, columns]`` with every value replaced by the one block FP8 stores."""
    scales = expand_fp8_scales(fp8_scales(weight))
    return (weight / scales).to(torch.float8_e4m3fn).float() * scales


def straight_through(weight: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """``rounded`` in the forward pass, the gradient of ``weight`` in the backward pass."""
    return weight + (rounded - weight).detach()


def pack_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``weight [rows, columns]`` as int8 pairs ``[rows, columns / 2]`` (even column in the low
    nibble) and e8m0 scales ``[rows, columns / 32]``."""
    scales = mxfp4_scales(weight)
    values = round_e2m1(weight.unflatten(-1, (-1, FP4_BLOCK)) / scales.unsqueeze(-1)).flatten(-2)
    codes = torch.searchsorted(torch.tensor(FP4_VALUES), values.abs().contiguous())
    codes = codes.to(torch.uint8) | ((values < 0).to(torch.uint8) << 3)
    packed = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return packed.view(torch.int8).contiguous(), scales.to(torch.float8_e8m0fnu)


def pack_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``weight [rows, columns]`` as e4m3 and e8m0 scales ``[rows / 128, columns / 128]``."""
    scales = fp8_scales(weight)
    packed = (weight / expand_fp8_scales(scales)).to(torch.float8_e4m3fn)
    return packed.contiguous(), scales.to(torch.float8_e8m0fnu)


def unpack_mxfp4(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 ``[rows, columns]`` that ``pack_mxfp4`` stored."""
    codes = packed.view(torch.uint8)
    nibbles = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2).long()
    values = torch.tensor(FP4_VALUES)[nibbles & 7] * (1 - 2 * (nibbles >> 3))
    return values * scales.float().repeat_interleave(FP4_BLOCK, -1)


def unpack_fp8(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 ``[rows, columns]`` that ``pack_fp8`` stored."""
    return packed.float() * expand_fp8_scales(scales.float())
