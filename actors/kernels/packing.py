"""Weights in the form of vLLM's CPU kernels (`convert_weight_packed`), in one pass into their slot.

The kernels read 32 output rows at a time, see `native.packed_blocks`. A unit is two columns, of 32
bits in bf16 and 16 in FP8; MXFP4 has two columns in a byte and pairs rows.

vLLM's own operator moves bytes one by one, and gate and up rows have to be put in alternation
before it, in memory of their own. Measured for an expert of 4096 x 2048 in MXFP4 (13.4 MB) on one
core: 0.8 ms here, 25 ms there. That both give the same is not taken on trust: the two are compared
when the first weights of a format are packed, and where a vLLM differs its own operator is taken.

The native code is imported when something is packed: engines import this module for their fixes,
before numba may be loaded there (see `actors.vllm_plugin.connection.backend`).
"""

import functools
import logging

import numpy as np
import numpy.typing as npt
import torch

log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]


def pack_rows(matrix: torch.Tensor, out: torch.Tensor, *, alternate: bool = False) -> None:
    """Write `matrix` [R, C] (bf16, FP8, or MXFP4's bytes) to `out`, of the same shape, packed.

    R and the columns are multiples of 32. alternate: the rows are first taken in the order 0, R/2,
    1, R/2 + 1 and so on.
    """
    pack = transpose_rows if packs_as_vllm(matrix.dtype) else rows_by_vllm
    pack(matrix, out, alternate)


def pack_scales(
    scales: torch.Tensor, out: torch.Tensor, *, alternate: bool = False, add: int = 0
) -> None:
    """The same for MXFP4's scales [R, G] uint8, each plus `add`."""
    pack = transpose_scales if packs_as_vllm(scales.dtype) else scales_by_vllm
    pack(scales, out, alternate, add)


def interleave(tensor: torch.Tensor) -> torch.Tensor:
    """Dimension 0 [gate; up] -> gate and up alternating."""
    gate, up = tensor.chunk(2)
    return torch.stack([gate, up], 1).flatten(0, 1)


@functools.cache
def packs_as_vllm(dtype: torch.dtype) -> bool:
    """Whether the installed vLLM (`torch.ops._C`) packs weights of `dtype` as this module does."""
    from native.packed_blocks import ROWS

    sample = (torch.arange(2 * ROWS * 4 * ROWS) * 37 % 251).byte().view(2 * ROWS, -1)
    ours, theirs = torch.empty_like(sample), torch.empty_like(sample)
    transpose_rows(sample.view(dtype), ours.view(dtype), alternate=False)
    rows_by_vllm(sample.view(dtype), theirs.view(dtype), alternate=False)
    same = torch.equal(ours, theirs)
    if dtype is torch.uint8:
        transpose_scales(sample, ours, alternate=False, add=0)
        scales_by_vllm(sample, theirs, alternate=False, add=0)
        same = same and torch.equal(ours, theirs)
    if not same:
        log.warning("this vLLM packs %s weights in another form: loading is slower", dtype)
    return same


def transpose_rows(matrix: torch.Tensor, out: torch.Tensor, alternate: bool) -> None:
    """`pack_rows`, whatever the installed vLLM does."""
    from native.packed_blocks import ROWS, pack_16, pack_32, pack_paired

    rows, row_bytes = len(matrix), matrix.nbytes // len(matrix)
    source, target, steps = _as_bytes(matrix), _as_bytes(out), _steps(rows, row_bytes, alternate)
    if matrix.dtype is torch.uint8:
        pack_paired(source, target, rows // ROWS, row_bytes, *steps)
    elif matrix.dtype.itemsize == 1:
        pack_16(source, target, rows // ROWS, row_bytes // 2, *steps)
    else:
        assert matrix.dtype is torch.bfloat16
        pack_32(source, target, rows // ROWS, row_bytes // 4, *steps)


def transpose_scales(scales: torch.Tensor, out: torch.Tensor, alternate: bool, add: int) -> None:
    """`pack_scales`, whatever the installed vLLM does."""
    from native.packed_blocks import ROWS, pack_bytes

    rows, groups = scales.shape
    steps = _steps(rows, groups, alternate)
    pack_bytes(_as_bytes(scales), _as_bytes(out), rows // ROWS, groups, *steps, add)


def rows_by_vllm(matrix: torch.Tensor, out: torch.Tensor, alternate: bool) -> None:
    """`pack_rows` by vLLM's own operator."""
    ordered = interleave(matrix) if alternate else matrix
    out.copy_(torch.ops._C.convert_weight_packed(ordered.unsqueeze(0).contiguous()).squeeze(0))


def scales_by_vllm(scales: torch.Tensor, out: torch.Tensor, alternate: bool, add: int) -> None:
    """`pack_scales` by vLLM's own operator."""
    ordered = (interleave(scales) if alternate else scales) + add
    out.copy_(torch.ops._C.convert_scale_packed(ordered.unsqueeze(0).contiguous()).squeeze(0))


def _steps(rows: int, row_bytes: int, alternate: bool) -> tuple[int, int]:
    """Bytes from an even row to the next even one, and to the odd one between them."""
    return (row_bytes, rows // 2 * row_bytes) if alternate else (2 * row_bytes, row_bytes)


def _as_bytes(tensor: torch.Tensor) -> Bytes:
    flat: Bytes = tensor.contiguous().view(torch.uint8).numpy().reshape(-1)
    return flat
