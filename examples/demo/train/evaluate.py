"""Held-out loss, expert load and greedy samples of a checkpoint, with unmodified transformers.

    python evaluate.py CHECKPOINT_DIR WORK_DIR/held_out.jsonl PROMPTS_JSONL REPORT_JSON

The released-layout checkpoint is read back (dequantised to float32) into transformers' own
``DeepseekV4ForCausalLM``, so the figures are those of the shipped bytes. Losses are per token and
in bits per byte (comparable between tokenizers); expert load is counted on the held-out text.
"""

import argparse
import json
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from convert import released_name
from quantize import unpack_fp8, unpack_mxfp4
from safetensors.torch import load_file
from torch.nn import functional
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM, PreTrainedTokenizerFast

WINDOW = 256
WINDOWS_PER_DOMAIN = 24
HOT_EXPERTS = 8
SAMPLE_TOKENS = 64
SAMPLES_PER_DOMAIN = 4
LOOP_SPAN = 6
"""A sample loops when this many tokens in a row occur at least ``LOOP_REPEATS`` times in it."""
LOOP_REPEATS = 3


def read_weight(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The tensor ``name`` (released name), dequantised."""
    weight = tensors[name]
    if weight.dtype == torch.int8:
        return unpack_mxfp4(weight, tensors[name.removesuffix("weight") + "scale"])
    if weight.dtype == torch.float8_e4m3fn:
        return unpack_fp8(weight, tensors[name.removesuffix("weight") + "scale"])
    return weight if name.endswith("tid2eid") else weight.float()


def load_released(checkpoint: Path) -> DeepseekV4ForCausalLM:
    """transformers' model in float32 with the checkpoint's dequantised weights."""
    config = json.loads((checkpoint / "config.json").read_text())
    for key in ("quantization_config", "expert_dtype", "torch_dtype"):
        config.pop(key, None)
    model = DeepseekV4ForCausalLM._from_config(
        DeepseekV4Config(**config), attn_implementation="eager", dtype=torch.float32
    )
    tensors = load_file(checkpoint / "model.safetensors")
    state = {}
    for target in model.state_dict():
        name = released_name(target)
        if ".ffn.experts." not in name:
            state[target] = read_weight(tensors, name)
            continue
        base, leaf = name.rsplit(".", 1)
        matrices = ("w1", "w3") if leaf == "gate_up_proj" else ("w2",)
        state[target] = torch.stack(
            [
                torch.cat([read_weight(tensors, f"{base}.{e}.{m}.weight") for m in matrices])
                for e in range(config["n_routed_experts"])
            ]
        )
    model.load_state_dict(state)
    return model.eval()


def held_out_windows(
    documents: list[str], tokenizer: PreTrainedTokenizerFast, bos: int, eos: int
) -> tuple[torch.Tensor, float]:
    """``[N, WINDOW + 1]`` evenly spaced windows, and the text's bytes per token."""
    ids = [
        token
        for text in documents
        for token in [bos, *tokenizer.encode(text, add_special_tokens=False), eos]
    ]
    n_bytes = sum(len(text.encode()) for text in documents)
    tokens = torch.tensor(ids)
    last = len(tokens) - WINDOW - 1
    count = min(WINDOWS_PER_DOMAIN, last // WINDOW)
    offsets = torch.linspace(0, last, count).long()
    return tokens[offsets.unsqueeze(1) + torch.arange(WINDOW + 1)], n_bytes / len(ids)


class LoadCounter:
    """Counts the experts chosen in every layer while attached: ``counts[layer]``: ``[E]``."""

    def __init__(self, model: DeepseekV4ForCausalLM) -> None:
        self.n_experts = model.config.n_routed_experts
        self.counts: dict[int, torch.Tensor] = {}
        for layer, block in enumerate(model.model.layers):
            block.mlp.gate.register_forward_hook(self.hook(layer))
        self.reset(len(model.model.layers))

    def reset(self, n_layers: int) -> None:
        self.counts = {layer: torch.zeros(self.n_experts) for layer in range(n_layers)}

    def hook(self, layer: int) -> Any:
        def count(_module: Any, _inputs: Any, outputs: tuple[torch.Tensor, ...]) -> None:
            chosen = outputs[2].reshape(-1)
            self.counts[layer] += torch.bincount(chosen, minlength=self.n_experts)

        return count


def load_report(load: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Skew of one layer's ``{domain: counts [E]}`` and how much the domains' loads differ."""
    share = {domain: counts / counts.sum() for domain, counts in load.items()}
    hot = {d: set(counts.topk(HOT_EXPERTS).indices.tolist()) for d, counts in load.items()}
    pairs = list(combinations(load, 2))
    mixed = torch.stack(list(share.values())).mean(0)
    return {
        "max_over_mean": {d: round((c.max() / c.mean()).item(), 2) for d, c in load.items()},
        "mixed_max_over_mean": round((mixed.max() / mixed.mean()).item(), 2),
        "dead_everywhere": int((mixed == 0).sum()),
        "unused_in_domain": {d: int((c == 0).sum()) for d, c in load.items()},
        "cosine": {
            f"{a}-{b}": round(functional.cosine_similarity(share[a], share[b], dim=0).item(), 2)
            for a, b in pairs
        },
        "shared_hot_experts": {f"{a}-{b}": len(hot[a] & hot[b]) for a, b in pairs},
    }


def loops(tokens: list[int]) -> bool:
    spans: dict[tuple[int, ...], int] = defaultdict(int)
    for start in range(len(tokens) - LOOP_SPAN + 1):
        spans[tuple(tokens[start : start + LOOP_SPAN])] += 1
    return bool(spans) and max(spans.values()) >= LOOP_REPEATS


@torch.no_grad()
def greedy_samples(
    model: DeepseekV4ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[dict[str, str]]
) -> dict[str, Any]:
    """Greedy continuations of every prompt: how many loop, and the first few as text."""
    looping: dict[str, int] = defaultdict(int)
    samples: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in prompts:
        domain, prompt = row["domain"], row["prompt"]
        ids = [model.config.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
        output = model.generate(
            torch.tensor([ids]), max_new_tokens=SAMPLE_TOKENS, do_sample=False, pad_token_id=1
        )[0, len(ids) :].tolist()
        looping[domain] += loops(output)
        if len(samples[domain]) < SAMPLES_PER_DOMAIN:
            text = str(tokenizer.decode(output, skip_special_tokens=True))
            samples[domain].append({"prompt": prompt, "greedy": text})
    return {"looping": dict(looping), "samples": dict(samples)}


@torch.no_grad()
def evaluate(checkpoint: Path, held_out: Path, prompts: Path) -> dict[str, Any]:
    model = load_released(checkpoint)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    config = model.config
    documents: dict[str, list[str]] = defaultdict(list)
    for line in held_out.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        documents[row["domain"]].append(row["text"])
    counter = LoadCounter(model)
    losses, bits_per_byte, load = {}, {}, {}
    for domain, texts in documents.items():
        windows, bytes_per_token = held_out_windows(
            texts, tokenizer, config.bos_token_id, config.eos_token_id
        )
        counter.reset(config.num_hidden_layers)
        total = 0.0
        for rows in windows.split(8):
            logits = model(rows[:, :-1], use_cache=False).logits
            targets = rows[:, 1:].reshape(-1)
            total += functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum").item()
        loss = total / windows[:, 1:].numel()
        losses[domain] = round(loss, 3)
        bits_per_byte[domain] = round(loss / torch.tensor(2.0).log().item() / bytes_per_token, 3)
        load[domain] = counter.counts
    layers = {
        f"layer {layer}": load_report({domain: load[domain][layer] for domain in load})
        for layer in range(config.num_hidden_layers)
    }
    rows = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    report = {"held_out_loss": losses, "held_out_bits_per_byte": bits_per_byte, "load": layers}
    return report | greedy_samples(model, tokenizer, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint with transformers.")
    for name in ("checkpoint", "held_out", "prompts", "report"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    report = evaluate(arguments.checkpoint, arguments.held_out, arguments.prompts)
    text = json.dumps(report, ensure_ascii=False, indent=1)
    arguments.report.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
