"""Many experts' quantised weights to bf16 at once, into memory that is there already.

Same bits as their formats' `decode`, in operators that accelerators run at memory speed: for each
weight FP8 moves 7 bytes and MXFP4 about 10. No step waits for the device.
"""

import torch

from actors.experts.formats import fp8_block128, mxfp4
from actors.experts.formats.mxfp4 import e2m1_pairs, power_of_two


def dequantise_stack(
    weight: torch.Tensor, scale: torch.Tensor, halves: int, out: torch.Tensor
) -> None:
    """out [n, rows, columns] bf16 (contiguous) from n matrices of a quantised `ExpertTensors`.

    halves: matrices one above the other within each, whose FP8 blocks start anew (2 for w13).
    """
    if weight.dtype is torch.float8_e4m3fn:
        out.copy_(weight)
        for matrices, blocks in zip(out.chunk(halves, 1), scale.chunk(halves, 1), strict=True):
            _scale_blocks(matrices, blocks)
        return
    pairs = e2m1_pairs(weight.device, torch.bfloat16)
    torch.index_select(pairs, 0, weight.flatten().int(), out=out.view(torch.int32).view(-1))
    out.view(*scale.shape, mxfp4.BLOCK).mul_(power_of_two(scale).unsqueeze(-1))


def _scale_blocks(matrices: torch.Tensor, scale: torch.Tensor) -> None:
    """matrices [n, rows, columns] bf16 times scale [n, rows / 128, columns / 128] fp32, in place
    and rounded once."""
    count, rows, columns = matrices.shape
    of_row = scale.repeat_interleave(fp8_block128.BLOCK, 1)[:, :rows]
    blocks, rest = divmod(columns, fp8_block128.BLOCK)
    if blocks:
        whole = matrices[..., : columns - rest].view(count, rows, blocks, fp8_block128.BLOCK)
        whole.mul_(of_row[..., :blocks].unsqueeze(-1))
    if rest:
        matrices[..., columns - rest :].mul_(of_row[..., blocks:])
