"""vLLM's fused Triton kernel on CPU tensors, in Triton's interpreter: a program of its own, since
the interpreter is chosen before Triton is imported.

Triton's interpreter has no bf16 products, so unquantised experts and all rows are fp32 here. The
CUDA operators that vLLM calls around its kernel (sorting, adding up, rounding to FP8, gpt-oss's
activation) are written in torch below, with the signatures of vLLM's CUDA build.

Prints one line of JSON: case -> [[assignments, largest relative error of an output], ...], the
errors against fp32.
"""

import json
import os
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton.backends

# A CPU build of vLLM switches Triton off unless it has a CPU backend; the interpreter needs none.
triton.backends.backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: False))

from vllm.model_executor.layers.fused_moe import utils as vllm_utils  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402

from actors.experts.checkpoint import ExpertTensors  # noqa: E402
from actors.experts.formats.bf16 import BF16  # noqa: E402
from actors.experts.formats.fp8_block128 import FP8_BLOCK128  # noqa: E402
from actors.experts.spec import ExpertSpec  # noqa: E402
from actors.kernels.vllm_cuda_fused import VllmCudaFused, supports  # noqa: E402
from tests.actors.kernels.building import (  # noqa: E402
    GPT_OSS,
    SILU,
    make_batch,
    make_experts,
    make_spec,
)
from tests.actors.kernels.reference import reference  # noqa: E402

E4M3_MAX = 448.0
SLOTS = 6
CASES = {
    "bf16": make_spec(BF16, SILU, hidden=64, inter=48),
    "gpt-oss": make_spec(BF16, GPT_OSS, hidden=96, inter=64),
    "fp8": make_spec(FP8_BLOCK128, SILU, hidden=256, inter=128),
}


def align_block_size(
    topk_ids, num_experts, block_size, sorted_ids, expert_ids, num_padded, _map, _scatter
) -> None:
    ids = topk_ids.flatten()
    sorted_ids.fill_(len(ids))
    at = 0
    for number in range(num_experts):
        mine = (ids == number).nonzero().flatten().int()
        end = at + -(-len(mine) // block_size) * block_size
        sorted_ids[at : at + len(mine)] = mine
        expert_ids[at // block_size : end // block_size] = number
        at = end
    num_padded.fill_(at)


def moe_sum(outputs, out, _ids, _map) -> None:
    out.copy_(outputs.sum(1))


def swigluoai_and_mul(out, gate_up, alpha=1.702, limit=7.0) -> None:
    gate, up = gate_up[..., 0::2].clamp(max=limit), gate_up[..., 1::2].clamp(-limit, limit)
    out.copy_(gate * torch.sigmoid(alpha * gate) * (up + 1))


def per_token_group_quant_fp8(rows, group_size):
    groups = rows.unflatten(-1, (-1, group_size))
    scale = groups.abs().amax(-1).clamp(min=1e-10) / E4M3_MAX
    return (groups / scale.unsqueeze(-1)).to(torch.float8_e4m3fn).flatten(-2), scale


def add_cuda_operators() -> list[torch.library.Library]:
    """The operators live as long as what is returned."""
    moe = torch.library.Library("_moe_C", "FRAGMENT")
    moe.define(
        "moe_align_block_size(Tensor topk_ids, int num_experts, int block_size, Tensor! sorted_ids,"
        " Tensor! expert_ids, Tensor! num_padded, Tensor? expert_map, Tensor? scatter_idx) -> ()"
    )
    moe.define("moe_sum(Tensor input, Tensor! output, Tensor? ids, Tensor? expert_map) -> ()")
    moe.impl("moe_align_block_size", align_block_size, "CPU")
    moe.impl("moe_sum", moe_sum, "CPU")
    other = torch.library.Library("_C", "FRAGMENT")
    other.define(
        "swigluoai_and_mul(Tensor! out, Tensor input, float alpha=1.702, float limit=7.0) -> ()"
    )
    other.impl("swigluoai_and_mul", swigluoai_and_mul, "CPU")
    vllm_utils.per_token_group_quant_fp8 = per_token_group_quant_fp8
    return [moe, other]


def as_computed(expert: ExpertTensors) -> ExpertTensors:
    if expert.w13_scale is not None:
        return expert
    return expert.map(lambda tensor: tensor.float())


def errors(spec: ExpertSpec) -> list[tuple[int, float]]:
    assert supports(spec)
    operator = VllmCudaFused(spec, torch.device("cpu"))
    experts = {number: as_computed(one) for number, one in make_experts(spec).items()}
    packed = [operator.pack(experts[number]).tensors() for number in range(SLOTS)]
    names = [name for name in ExpertTensors.__slots__ if getattr(experts[0], name) is not None]
    stacked = [torch.stack(tensors) for tensors in zip(*packed, strict=True)]
    held = ExpertTensors(**dict(zip(names, stacked, strict=True)))
    found = []
    for count in (1, 3, 40):  # vLLM sorts none, few and many assignments in different ways
        ids = [(row, row * row % 5) for row in range(count)]
        batch = make_batch(count, spec.hidden_size, ids)
        rows, _, slots, weights = batch
        outputs = operator.run(held, rows.float(), slots, weights)
        expected, norms = reference(experts, spec.activation, batch)
        found.append((count, float(((outputs - expected).norm(dim=1) / norms).max())))
    return found


if __name__ == "__main__":
    current_platform.import_kernels()
    libraries = add_cuda_operators()
    print(json.dumps({name: errors(spec) for name, spec in CASES.items()}))
