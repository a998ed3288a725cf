"""Against transformers: its checkpoints are read, and its expert modules agree with ours."""

import pytest
import torch

from actors.experts.check import check_checkpoint
from actors.experts.families import read_expert_spec
from actors.kernels.choose import choose_kernel

SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
}
LOW_RANK = {"q_lora_rank": 16, "kv_lora_rank": 32}
MODELS = {
    "qwen3_moe": {"moe_intermediate_size": 32, "num_experts": 4, "head_dim": 16},
    "mixtral": {"intermediate_size": 32, "num_local_experts": 4},
    "deepseek_v3": {
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
        **LOW_RANK,
    },
    "deepseek_v4": {
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "head_dim": 64,
        "q_lora_rank": 16,
        "o_lora_rank": 16,
        "o_groups": 2,
        "num_hash_layers": 1,
    },
    "gpt_oss": {"intermediate_size": 32, "num_local_experts": 4, "head_dim": 32},
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="comes with vLLM, which is optional")


@pytest.mark.parametrize("original_format", [True, False], ids=["as-released", "as-held"])
@pytest.mark.parametrize("kind", MODELS)
def test_same_experts(transformers, kind, original_format, tmp_path):
    """Inputs are large, so that V4's and gpt-oss's clamps bind."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **(SMALL | MODELS[kind]))
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path, save_original_format=original_format)

    spec = read_expert_spec(tmp_path)
    check_checkpoint(spec)
    kernel = choose_kernel(spec, torch.device("cpu"))
    layer = spec.layers[-1]
    kernel.load(layer, [0, 1, 2, 3])
    rows = (torch.randn(7, 64) * 20).bfloat16()
    ids = torch.stack([torch.randperm(4)[:2] for _ in range(7)])
    weights = torch.rand(7, 2)
    ours = kernel.compute(
        layer,
        rows,
        torch.arange(7, dtype=torch.int32).repeat_interleave(2),
        ids.flatten().int(),
        weights.flatten(),
    )

    experts = model.float().model.layers[layer].mlp.experts
    with torch.no_grad():
        theirs = experts(rows.float(), ids, weights)
    assert (ours - theirs).norm() <= 0.01 * theirs.norm()
