"""The demo model, ready to train: initial weights, FP8 layers marked, the loss.

Weights start at ``1 / sqrt(fan_in)``, hash-routing tables with distinct random experts per token.
"""

import torch
import transformers.models.deepseek_v4.modeling_deepseek_v4 as v4
from model_config import demo_config
from torch import nn
from torch.nn import functional
from training_kernels import (
    ATTENTION_NAME,
    fp8_grouped_linear_forward,
    fp8_linear_forward,
)
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM


def stored_as_fp8(name: str) -> bool:
    """Whether the linear layer ``name`` is FP8 in the released layout (compressors stay bf16)."""
    attention = ".self_attn." in name and ".compressor." not in name
    return attention or ".shared_experts." in name


def build_model(vocab_size: int, seed: int) -> DeepseekV4ForCausalLM:
    """The demo model with fan-in initialisation and random hash-routing tables, float32."""
    torch.manual_seed(seed)
    config = DeepseekV4Config(**demo_config(vocab_size))
    model = DeepseekV4ForCausalLM._from_config(
        config, attn_implementation=ATTENTION_NAME, dtype=torch.float32
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            init_fan_in(module.weight)
            if stored_as_fp8(name):
                grouped = isinstance(module, v4.DeepseekV4GroupedLinear)
                forward = fp8_grouped_linear_forward if grouped else fp8_linear_forward
                module.forward = forward.__get__(module)
        elif isinstance(module, v4.DeepseekV4Experts):
            init_fan_in(module.gate_up_proj)
            init_fan_in(module.down_proj)
        elif isinstance(module, v4.DeepseekV4TopKRouter | v4.DeepseekV4HashRouter):
            init_fan_in(module.weight)
        if isinstance(module, v4.DeepseekV4HashRouter):
            picks = torch.rand(vocab_size, module.num_experts).argsort(dim=1)
            module.tid2eid.copy_(picks[:, : module.top_k])
    nn.init.normal_(model.model.embed_tokens.weight, std=1.0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name)
    return model


def init_fan_in(weight: torch.Tensor) -> None:
    nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)


@torch.compile(dynamic=False)
def next_token_loss(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy ``[B * S]`` of ``hidden [B, S, D]`` through the output head ``[V, D]``."""
    logits = functional.linear(
        hidden.flatten(0, 1).to(torch.bfloat16), head.to(torch.bfloat16)
    ).float()
    return torch.logsumexp(logits, -1) - logits.gather(1, targets.reshape(-1, 1)).squeeze(1)


def token_losses(model: DeepseekV4ForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Loss ``[B, S]`` of predicting ``tokens[:, 1:]`` from ``tokens[:, :-1]`` (``[B, S + 1]``)."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(tokens[:, :-1], use_cache=False).last_hidden_state
    losses = next_token_loss(hidden, model.lm_head.weight, tokens[:, 1:])
    return losses.view(tokens.shape[0], -1)
