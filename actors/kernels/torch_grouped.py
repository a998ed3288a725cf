"""Experts on devices whose torch has a grouped GEMM: all experts of a call in two launches.

`torch.nn.functional.grouped_mm` multiplies consecutive groups of rows with one matrix each. On
NVIDIA devices of compute capability 9 and 10 it is one CUTLASS kernel that reads the groups' ends
on the device; anywhere else, CPUs included, torch 2.13 copies the ends to the host and multiplies
group by group: correct, but no gain over `TorchPortable`. Here nothing waits for the device: rows
are sorted and counted there, and sizes depend on the number of assignments and slots only.

bf16 weights are multiplied as they are. FP8 and MXFP4 stay so in memory; a call makes the experts
it may use bf16, in a scratch of at most SCRATCH_BYTES that every call uses again (in parts where
that is not enough). "May use": with fewer assignments than slots those that are used and unused
ones up to the number of assignments, else all, since how many are used is known on the device only.
That is some 10 bytes of memory traffic for each weight where a native FP8 kernel reads one, so the
cost of a small call is about ten times its weights' bytes. torch's `scaled_grouped_mm` is no way
around it: it takes FP8 or FP4 rows, and weights with one scale per output row or e8m0 scales per 32
columns, not 128x128 blocks.

Rounding: weights that FP8 scales make inexact, gate and up, the activated product and the down
projection are rounded to bf16, GEMMs accumulate in fp32; biases, the activation and the routing
weight are fp32 and so are the outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import COMPRESSED_FP8_BLOCK128, FP8_BLOCK128
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.spec import ExpertSpec
from actors.kernels.base import ExpertOperator
from actors.kernels.dequantise_stack import dequantise_stack
from actors.kernels.gated import gated_product
from actors.kernels.target import Target

SCRATCH_BYTES = 1 << 30
ALIGNMENT = 8  # bf16 values in the 16 bytes that rows' and matrices' strides are multiples of
MAX_GROUPS = 1023

GroupedGemm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(x [A, K], weights [G, N, K], ends int32 [G]) -> [A, N]: rows up to ends[g] from the end of the
group before times weights[g].T, all bf16. Rows from ends[-1] on are undefined."""

GROUPED_GEMM_MAJORS = (9, 10)
"""Compute capabilities (major numbers) for which torch 2.13 has a grouped GEMM of one kernel."""

FORMATS = (BF16, FP8_BLOCK128, COMPRESSED_FP8_BLOCK128, MXFP4)
"""What is multiplied as it is or made bf16 by `dequantise_stack`."""

NAME = "torch's grouped GEMM"
IS_FALLBACK = True


def why_not(spec: ExpertSpec, target: Target) -> str | None:
    if spec.weight_format not in FORMATS:
        return f"{NAME} is not written for {spec.weight_format.name}"
    if not supports(spec):
        return f"{NAME} does not take these sizes"
    if target.capability[0] not in GROUPED_GEMM_MAJORS:
        return "torch has no grouped GEMM for this device"
    return None


def build(spec: ExpertSpec, target: Target) -> ExpertOperator:
    return TorchGrouped(spec, target.device)


def supports(spec: ExpertSpec) -> bool:
    """Whether the grouped GEMM takes this model's sizes."""
    aligned = spec.hidden_size % ALIGNMENT == 0 and spec.intermediate_size % ALIGNMENT == 0
    return aligned and spec.num_experts <= MAX_GROUPS


def torch_grouped_mm(x: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.grouped_mm(x, weights.transpose(1, 2), offs=ends)


@dataclass(frozen=True, slots=True)
class Groups:
    """Sorted rows as groups of one slot each.

    ends: int32 [G], where each group ends; a group may be empty.
    slots: int64 [G], the slot of each; None: group g is slot g.
    """

    ends: torch.Tensor
    slots: torch.Tensor | None


class TorchGrouped:
    """See `ExpertOperator`. Only for specs that `supports`."""

    def __init__(
        self,
        spec: ExpertSpec,
        device: torch.device,
        scratch_bytes: int = SCRATCH_BYTES,
        gemm: GroupedGemm = torch_grouped_mm,
    ) -> None:
        self.device = device
        self.weight_format = spec.weight_format
        self._activation = spec.activation
        self._gemm = gemm
        matrix = 2 * spec.intermediate_size * spec.hidden_size
        self._part = max(1, scratch_bytes // (matrix * torch.bfloat16.itemsize))
        self._scratch = torch.empty(0, dtype=torch.bfloat16, device=device)

    def pack(self, expert: ExpertTensors) -> ExpertTensors:
        return expert.map(lambda tensor: tensor.to(self.device).contiguous())

    def run(
        self, held: ExpertTensors, rows: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        order = torch.argsort(slots, stable=True)
        slots = slots.index_select(0, order)
        groups = self._groups(slots, held.w13.shape[0])
        gate_up = self._multiply(rows.index_select(0, order), groups, held.w13, held.w13_scale, 2)
        activated = gated_product(_add(gate_up, held.w13_bias, slots), self._activation)
        down = self._multiply(activated.bfloat16(), groups, held.w2, held.w2_scale, 1)
        outputs = _add(down, held.w2_bias, slots).float()
        outputs = outputs * weights.index_select(0, order).unsqueeze(1)
        return torch.empty_like(outputs).index_copy_(0, order, outputs)

    def _groups(self, slots: torch.Tensor, num_slots: int) -> Groups:
        """slots: int32 [A], ascending."""
        every = torch.arange(num_slots, dtype=torch.int32, device=slots.device)
        ends = torch.searchsorted(slots, every, right=True, out_int32=True)
        if self.weight_format == BF16 or len(slots) >= num_slots:
            return Groups(ends, None)
        counts = torch.diff(ends, prepend=ends.new_zeros(1))
        used_first = torch.argsort(counts == 0, stable=True)[: len(slots)]
        ends = torch.cumsum(counts.index_select(0, used_first), 0, dtype=torch.int32)
        return Groups(ends, used_first)

    def _multiply(
        self,
        x: torch.Tensor,
        groups: Groups,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        halves: int,
    ) -> torch.Tensor:
        """[A, N] bf16 of sorted rows x [A, K] through stacked weights [S, N, K], any format."""
        if scale is None:
            return self._gemm(x, weight, groups.ends)
        columns, count = x.shape[1], len(groups.ends)
        parts = [slice(at, min(at + self._part, count)) for at in range(0, count, self._part)]
        outputs = x.new_empty((x.shape[0], weight.shape[1]))
        for part in parts:
            matrices = self._as_bf16(groups, part, weight, scale, halves, columns)
            if len(parts) == 1:
                return self._gemm(x, matrices, groups.ends)
            outputs = self._part_of(outputs, x, matrices, groups.ends, part)
        return outputs

    def _as_bf16(
        self,
        groups: Groups,
        part: slice,
        weight: torch.Tensor,
        scale: torch.Tensor,
        halves: int,
        columns: int,
    ) -> torch.Tensor:
        """[g, N, K] bf16 of the groups in `part`, in the scratch."""
        if groups.slots is None:
            weight, scale = weight[part], scale[part]
        else:
            picked = groups.slots[part]
            weight_bytes = weight.view(torch.uint8).index_select(0, picked)
            weight, scale = weight_bytes.view(weight.dtype), scale.index_select(0, picked)
        shape = (weight.shape[0], weight.shape[1], columns)
        size = shape[0] * shape[1] * shape[2]
        if size > len(self._scratch):
            self._scratch = torch.empty(size, dtype=torch.bfloat16, device=weight.device)
        matrices = self._scratch[:size].view(shape)
        dequantise_stack(weight, scale, halves, matrices)
        return matrices

    def _part_of(
        self,
        outputs: torch.Tensor,
        x: torch.Tensor,
        matrices: torch.Tensor,
        ends: torch.Tensor,
        part: slice,
    ) -> torch.Tensor:
        """`outputs` with the rows of the groups in `part`. Where those begin is known on the device
        only, so the rows are rotated until they come first."""
        start = ends[part.start - 1] if part.start else ends.new_zeros(())
        places = torch.arange(len(x), dtype=torch.int32, device=x.device)
        first = x.index_select(0, (places + start) % len(x))
        product = self._gemm(first, matrices, ends[part] - start)
        back = product.index_select(0, (places - start) % len(x))
        inside = (places >= start) & (places < ends[part.stop - 1])
        return torch.where(inside.unsqueeze(1), back, outputs)

    def describe(self) -> str:
        how = f"{self.weight_format.name} experts on torch's grouped GEMM on {self.device}"
        made = "" if self.weight_format == BF16 else ", made bf16 in every call"
        return how + made


def _add(x: torch.Tensor, bias: torch.Tensor | None, slots: torch.Tensor) -> torch.Tensor:
    """x [A, N] bf16, plus row slots[a] of bias [S, N] in fp32 if there is one."""
    return x if bias is None else x.float() + bias.index_select(0, slots)
