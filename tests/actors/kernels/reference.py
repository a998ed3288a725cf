"""Expert outputs in fp32, one assignment after another: what kernels are compared with.

Written on its own, from the formats' definitions: nothing here is shared with the kernels.
"""

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.spec import Activation, GateActivation

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def float_matrix(weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    if scale is None:
        return weight.float()
    values = stored_values(weight)
    if scale.dim() == 3:
        scale, zero = scale.unbind(-1)
        values = values - spread(zero, values)
    return values * spread(scale, values)


def stored_values(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] fp32, before any scale."""
    if weight.dtype is torch.int32:
        eighths = [(weight >> shift) & 15 for shift in range(0, 32, 4)]
        return torch.stack(eighths, -1).flatten(1).float() - 8
    if weight.dtype is torch.uint8:
        nibbles = torch.stack([weight & 15, weight >> 4], -1).flatten(1)
        return torch.tensor(E2M1)[nibbles.long()]
    return weight.float()


def spread(scale: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[out, in] fp32: the scale of each value."""
    rows, columns = values.shape
    if scale.dtype is torch.uint8:
        scale = torch.exp2(scale.double() - 127).float()
    if len(scale) < rows:
        return scale[torch.arange(rows) // 128][:, torch.arange(columns) // 128]
    return scale.repeat_interleave(columns // scale.shape[1], 1)


def float_expert(expert: ExpertTensors) -> tuple[torch.Tensor, torch.Tensor]:
    """(w13 [2I, H], w2 [H, I]) in fp32."""
    half = expert.w13.shape[0] // 2
    scales = (None, None) if expert.w13_scale is None else expert.w13_scale.chunk(2)
    gate = float_matrix(expert.w13[:half], scales[0])
    up = float_matrix(expert.w13[half:], scales[1])
    return torch.cat([gate, up]), float_matrix(expert.w2, expert.w2_scale)


def gate_and_up(
    w13: torch.Tensor, bias: torch.Tensor | None, row: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """([I], [I]) of one row through w13 [2I, H] fp32, before any clamp."""
    both = w13 @ row.float()
    gate, up = (both if bias is None else both + bias.float()).chunk(2)
    return gate, up


def activate(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    limit = float("inf") if activation.limit is None else activation.limit
    gate, up = torch.minimum(gate, torch.tensor(limit)), torch.clamp(up, -limit, limit)
    if activation.kind is GateActivation.SILU:
        return gate / (1 + torch.exp(-gate)) * up
    return gate / (1 + torch.exp(-activation.alpha * gate)) * (up + 1)


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def reference(
    experts: dict[int, ExpertTensors], activation: Activation, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """([R, H] sums, [R] sum of the norms of what was summed: the scale errors are measured on).

    batch: rows, row_index, experts, weights as `ExpertKernel.compute` takes them.
    """
    rows, row_index, ids, weights = batch
    floats = {number: float_expert(experts[number]) for number in set(ids.tolist())}
    sums = torch.zeros(rows.shape)
    norms = torch.zeros(rows.shape[0])
    for row, number, weight in zip(row_index.tolist(), ids.tolist(), weights, strict=True):
        w13, w2 = floats[number]
        expert = experts[number]
        output = w2 @ activate(*gate_and_up(w13, expert.w13_bias, rows[row]), activation)
        if expert.w2_bias is not None:
            output = output + expert.w2_bias.float()
        sums[row] += weight * output
        norms[row] += (weight * output).norm()
    return sums, norms
