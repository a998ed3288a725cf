"""Fast CPU kernels for training transformers' DeepSeek-V4.

The mathematics stays that of ``transformers.models.deepseek_v4``; only the hot spots are replaced:

* routed experts: tokens sorted by expert, each expert's rows padded to a multiple of
  ``ROW_TILE`` (CPU matmul libraries prepare a kernel per shape: few shapes, few preparations),
  one bf16 matrix product per expert, hand-written backward;
* attention: all query heads read the one KV head, so a layer is two batched products;
* mHC and RMSNorm: fused by ``torch.compile``;
* the CSA indexer selects every causal entry: training sequences are far shorter than
  ``4 * index_topk`` tokens, where the real indexer selects the same set. Its weights therefore
  get no gradient and keep their initial values.

``QuantisedTraining.enabled`` switches the fake quantisation of experts and dense layers on.
"""

from typing import Any

import torch
import transformers.models.deepseek_v4.modeling_deepseek_v4 as v4
from quantize import round_fp8, round_mxfp4, straight_through
from torch import nn
from torch.nn import functional
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION_NAME = "shared_kv_train"
ROW_TILE = 64
"""Rows per expert are padded to a multiple of this."""


class QuantisedTraining:
    """Whether the forward pass rounds weights to their stored values (straight-through)."""

    enabled = False


class ExpertLoad:
    """Token counts ``[E]`` of the last forward pass, by the ``DeepseekV4Experts`` module."""

    counts: dict[nn.Module, torch.Tensor] = {}  # noqa: RUF012  one registry for the process


class RowsByExpert(torch.autograd.Function):
    """``y[start:end] = x[start:end] @ weight[e].T`` for each expert's row range, in bf16."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, ends: list[int]) -> torch.Tensor:
        # x: [R, in] bf16, rows grouped by expert; weight: [E, out, in]; result [R, out].
        weight = weight.to(torch.bfloat16)
        y = torch.empty(x.shape[0], weight.shape[1], dtype=torch.bfloat16)
        start = 0
        for expert, end in enumerate(ends):
            if end > start:
                torch.mm(x[start:end], weight[expert].t(), out=y[start:end])
            start = end
        ctx.save_for_backward(x, weight)
        ctx.ends = ends
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_y = grad_y.contiguous()
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight)
        start = 0
        for expert, end in enumerate(ctx.ends):
            if end > start:
                rows = slice(start, end)
                torch.mm(grad_y[rows], weight[expert], out=grad_x[rows])
                torch.mm(grad_y[rows].t(), x[rows], out=grad_weight[expert])
            start = end
        return grad_x, grad_weight.float(), None


@torch.compile(dynamic=False)
def fake_mxfp4(weight: torch.Tensor) -> torch.Tensor:
    return straight_through(weight, round_mxfp4(weight))


@torch.compile(dynamic=True)
def gated_silu(gate_up: torch.Tensor, limit: float) -> torch.Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    gated = functional.silu(gate.clamp(max=limit)) * up.clamp(min=-limit, max=limit)
    return gated.to(torch.bfloat16)


def experts_forward(
    self: nn.Module, x: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """``x: [T, D]``, ``top_k_index`` and ``top_k_weights``: ``[T, K]``; returns ``[T, D]``."""
    n_tokens, top_k = top_k_index.shape
    flat = top_k_index.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=self.num_experts)
    ExpertLoad.counts[self] = counts

    padded_ends = ((counts + ROW_TILE - 1) // ROW_TILE * ROW_TILE).cumsum(0)
    first_row = functional.pad(padded_ends[:-1], (1, 0))
    first_slot = functional.pad(counts.cumsum(0)[:-1], (1, 0))
    sorted_expert = flat[order]
    sorted_row = first_row[sorted_expert] + torch.arange(len(flat)) - first_slot[sorted_expert]
    row_of_slot = torch.empty_like(order)
    row_of_slot[order] = sorted_row
    ends = padded_ends.tolist()

    token_of_row = torch.full((ends[-1],), n_tokens)
    token_of_row[sorted_row] = order // top_k
    padded_x = functional.pad(x.to(torch.bfloat16), (0, 0, 0, 1))  # one zero row for the padding
    w13, w2 = self.gate_up_proj, self.down_proj
    if QuantisedTraining.enabled:
        w13, w2 = fake_mxfp4(w13), fake_mxfp4(w2)
    gate_up = RowsByExpert.apply(padded_x.index_select(0, token_of_row), w13, ends)
    y = RowsByExpert.apply(gated_silu(gate_up, self.limit), w2, ends)
    chosen = y.index_select(0, row_of_slot).view(n_tokens, top_k, -1)
    return torch.bmm(top_k_weights.to(torch.bfloat16).unsqueeze(1), chosen).squeeze(1).float()


def shared_kv_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    _value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """``query [B, H, S, D]`` over ``key`` = value ``[B, 1, T, D]``: ``[B, S, H, D]``."""
    if attention_mask is None:
        raise ValueError("shared_kv_attention needs the causal mask; register its mask function")
    batch, heads, length, width = query.shape
    kv = key[:, 0].to(torch.bfloat16)
    rows = query.to(torch.bfloat16).reshape(batch, heads * length, width)
    logits = torch.bmm(rows, kv.transpose(1, 2)).view(batch, heads, length, -1)
    probs = sink_softmax(logits, attention_mask, module.sinks, scaling)
    mixed = torch.bmm(probs.reshape(batch, heads * length, -1), kv)
    return mixed.view(batch, heads, length, width).transpose(1, 2), None


@torch.compile(dynamic=False)
def sink_softmax(
    logits: torch.Tensor, mask: torch.Tensor, sinks: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Softmax over ``[B, H, S, T]`` with one learned sink logit per head, dropped afterwards."""
    scores = logits.float() * scaling + mask.float()
    sink = sinks.view(1, -1, 1, 1)
    peak = torch.maximum(scores.amax(-1, keepdim=True), sink).detach()
    weights = torch.exp(scores - peak)
    return (weights / (weights.sum(-1, keepdim=True) + torch.exp(sink - peak))).to(torch.bfloat16)


def indexer_forward(
    self: nn.Module,
    hidden_states: torch.Tensor,
    _q_residual: torch.Tensor,
    position_ids: torch.Tensor,
    *_: Any,
) -> torch.Tensor:
    """Every compressed entry that is causally visible, -1 for the others: ``[B, S, S / ratio]``."""
    batch, length = hidden_states.shape[:2]
    n_entries = length // self.compress_rate
    assert n_entries <= self.index_topk, "the indexer would have to choose"
    visible = (position_ids + 1) // self.compress_rate
    entries = torch.arange(n_entries).view(1, 1, -1).expand(batch, length, -1)
    return torch.where(entries >= visible.unsqueeze(-1), -1, entries)


@torch.compile(dynamic=False)
def hyper_connection_weights(
    streams: torch.Tensor,
    fn: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    iterations: int,
    hc_eps: float,
    norm_eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """mHC mapping of ``streams [B, S, N, D]``: post ``[B, S, N]``, comb ``[B, S, N, N]``, and the
    collapsed block input ``[B, S, D]``."""
    n = streams.shape[2]
    flat = streams.flatten(2)
    mixes = functional.linear(flat, fn) * torch.rsqrt(
        flat.square().mean(-1, keepdim=True) + norm_eps
    )
    pre = torch.sigmoid(mixes[..., :n] * scale[0] + base[:n]) + hc_eps
    post = 2 * torch.sigmoid(mixes[..., n : 2 * n] * scale[1] + base[n : 2 * n])
    logits = mixes[..., 2 * n :] * scale[2] + base[2 * n :]
    comb = torch.softmax(logits.unflatten(-1, (n, n)), dim=-1) + hc_eps
    comb = comb / (comb.sum(-2, keepdim=True) + hc_eps)
    for _ in range(iterations - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + hc_eps)
        comb = comb / (comb.sum(-2, keepdim=True) + hc_eps)
    return post, comb, (pre.unsqueeze(-1) * streams).sum(2)


@torch.compile(dynamic=False)
def hyper_connection_merge(
    post: torch.Tensor, comb: torch.Tensor, streams: torch.Tensor, block_output: torch.Tensor
) -> torch.Tensor:
    """``post * output + comb.T @ streams``: the next ``[B, S, N, D]``."""
    mixed = (comb.transpose(-1, -2).unsqueeze(-1) * streams.unsqueeze(-3)).sum(-2)
    return post.unsqueeze(-1) * block_output.float().unsqueeze(-2) + mixed


@torch.compile(dynamic=False)
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.float()
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))


def hyper_connection_forward(
    self: nn.Module, streams: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return hyper_connection_weights(
        streams,
        self.fn,
        self.base,
        self.scale,
        self.hc_sinkhorn_iters,
        self.hc_eps,
        self.input_norm.eps,
    )


def decoder_layer_forward(
    self: nn.Module, streams: torch.Tensor, input_ids: torch.Tensor | None = None, **kwargs: Any
) -> torch.Tensor:
    post, comb, collapsed = self.attn_hc(streams)
    output, _ = self.self_attn(self.input_layernorm(collapsed), **kwargs)
    streams = hyper_connection_merge(post, comb, streams, output)
    post, comb, collapsed = self.ffn_hc(streams)
    output = self.mlp(self.post_attention_layernorm(collapsed), input_ids=input_ids)
    return hyper_connection_merge(post, comb, streams, output)


def fp8_weight(self: nn.Linear) -> torch.Tensor:
    """The layer's weight as it will be stored, once quantisation-aware training is on."""
    if not QuantisedTraining.enabled:
        return self.weight
    with torch.no_grad():
        rounded = round_fp8(self.weight)
    return straight_through(self.weight, rounded)


def fp8_linear_forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, fp8_weight(self))


def fp8_grouped_linear_forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """The grouped output projection: ``x [B, S, G, in]`` to ``[B, S, G, out / G]``."""
    groups = self.n_groups
    weight = fp8_weight(self).unflatten(0, (groups, -1)).transpose(1, 2)
    rows = x.reshape(-1, groups, x.shape[-1]).transpose(0, 1)
    return torch.bmm(rows, weight).transpose(0, 1).reshape(*x.shape[:-1], -1)


def install_training_kernels() -> None:
    """Replace the hot spots above in transformers' classes, for this process."""
    torch._dynamo.config.recompile_limit = 64
    v4.DeepseekV4Experts.forward = experts_forward
    v4.DeepseekV4Indexer.forward = indexer_forward
    v4.DeepseekV4HyperConnection.forward = hyper_connection_forward
    v4.DeepseekV4DecoderLayer.forward = decoder_layer_forward
    v4.DeepseekV4RMSNorm.forward = lambda self, x: rms_norm(x, self.weight, self.variance_epsilon)
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, shared_kv_attention)
    # Without a mask function of the same name transformers passes no mask: not causal.
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, eager_mask)
