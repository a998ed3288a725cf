"""The gated activations, exactly, in fp32; see `GateActivation`."""

import torch

from actors.experts.spec import Activation, GateActivation


def gated_product(gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """[A, I] fp32 from gate_up [A, 2I] (I gate columns, then I up columns), any float dtype."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    if activation.limit is not None:
        gate = gate.clamp(max=activation.limit)
        up = up.clamp(-activation.limit, activation.limit)
    if activation.kind is GateActivation.SWIGLU_OAI:
        return gate * torch.sigmoid(activation.alpha * gate) * (up + 1)
    return torch.nn.functional.silu(gate) * up
