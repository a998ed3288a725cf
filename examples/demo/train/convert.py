"""Write a trained state as a checkpoint in DeepSeek-V4's released layout.

    python convert.py WORK_DIR CHECKPOINT_DIR

Reads ``WORK_DIR/state.safetensors`` and ``WORK_DIR/tokenizer``. Experts become MXFP4 (int8 pairs
and e8m0 scales), attention projections, the indexer's query projection and shared experts FP8 in
128x128 blocks with e8m0 scales, mHC weights, sinks and biases float32, the rest bf16; tensors get
DeepSeek's own names. Every file is written under a temporary name and renamed.
"""

import argparse
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from model_config import EXPERT_DTYPE, QUANTIZATION_CONFIG, demo_config
from quantize import pack_fp8, pack_mxfp4
from safetensors.torch import load_file, save_file

TOP_LEVEL_NAMES = {
    "model.embed_tokens.weight": "embed.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    "model.hc_head.hc_fn": "hc_head_fn",
    "model.hc_head.hc_base": "hc_head_base",
    "model.hc_head.hc_scale": "hc_head_scale",
}
"""transformers' names to DeepSeek's, outside the layers."""

LAYER_RENAMES = (
    # Modules, the most specific first.
    (r"^self_attn\.compressor\.indexer\.q_b_proj", "attn.indexer.wq_b"),
    (r"^self_attn\.compressor\.indexer\.scorer\.weights_proj", "attn.indexer.weights_proj"),
    (r"^self_attn\.compressor\.indexer\.", "attn.indexer.compressor."),
    (r"^self_attn\.", "attn."),
    (r"^(attn|ffn)_hc\.", r"hc_\1_"),
    (r"^input_layernorm", "attn_norm"),
    (r"^post_attention_layernorm", "ffn_norm"),
    (r"^mlp\.", "ffn."),
    # Leaves.
    (r"compressor\.kv_norm", "compressor.norm"),
    (r"compressor\.gate_proj", "compressor.wgate"),
    (r"kv_proj", "wkv"),
    (r"q_a_proj", "wq_a"),
    (r"q_a_norm", "q_norm"),
    (r"q_b_proj", "wq_b"),
    (r"o_([ab])_proj", r"wo_\1"),
    (r"sinks$", "attn_sink"),
    (r"position_bias$", "ape"),
    (r"e_score_correction_bias$", "bias"),
    (r"shared_experts\.gate_proj", "shared_experts.w1"),
    (r"shared_experts\.down_proj", "shared_experts.w2"),
    (r"shared_experts\.up_proj", "shared_experts.w3"),
)
"""Regular expressions applied in order to a name inside a layer."""

FP8_NAME = re.compile(
    r"attn\.(wq_a|wq_b|wkv|wo_a|wo_b)\.weight$|indexer\.wq_b\.weight$|shared_experts\.w\d\.weight$"
)
FLOAT32_NAME = re.compile(r"hc_(attn|ffn|head)_|attn_sink$|\.ape$|gate\.bias$")

Tensors = dict[str, torch.Tensor]


def released_name(name: str) -> str:
    """DeepSeek's name of the transformers tensor ``name``."""
    if name in TOP_LEVEL_NAMES:
        return TOP_LEVEL_NAMES[name]
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if not match:
        raise ValueError(f"unknown tensor {name!r} in the trained state")
    inner = match[2]
    for pattern, replacement in LAYER_RENAMES:
        inner = re.sub(pattern, replacement, inner)
    return f"layers.{match[1]}.{inner}"


def expert_tensors(name: str, stacked: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """MXFP4 tensors of every expert of the stacked parameter called ``name`` (released style)."""
    base, leaf = name.rsplit(".", 1)
    for expert, weight in enumerate(stacked):
        if leaf == "gate_up_proj":
            gate, up = weight.chunk(2, 0)
            matrices = {"w1": gate, "w3": up}
        else:
            matrices = {"w2": weight}
        for matrix_name, matrix in matrices.items():
            packed, scales = pack_mxfp4(matrix)
            yield f"{base}.{expert}.{matrix_name}.weight", packed
            yield f"{base}.{expert}.{matrix_name}.scale", scales


def released_tensors(state: Tensors) -> Tensors:
    """The checkpoint's tensors for a trained state (float32, transformers' names)."""
    tensors: Tensors = {}
    for source, tensor in state.items():
        name = released_name(source)
        if ".ffn.experts." in name:
            tensors.update(expert_tensors(name, tensor))
        elif FP8_NAME.search(name):
            packed, scales = pack_fp8(tensor)
            tensors[name] = packed
            tensors[name.removesuffix("weight") + "scale"] = scales
        elif name.endswith("tid2eid"):
            tensors[name] = tensor
        elif FLOAT32_NAME.search(name):
            tensors[name] = tensor.float()
        else:
            tensors[name] = tensor.to(torch.bfloat16)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def write_json(path: Path, content: object) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def write_checkpoint(work_dir: Path, out: Path) -> None:
    tensors = released_tensors(load_file(work_dir / "state.safetensors"))
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.tmp", metadata={"format": "pt"})
    os.replace(out / "model.tmp", out / "model.safetensors")

    total = sum(tensor.nbytes for tensor in tensors.values())
    weight_map = dict.fromkeys(sorted(tensors), "model.safetensors")
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(out / "model.safetensors.index.json", index)
    config = demo_config(tensors["embed.weight"].shape[0])
    config |= {"expert_dtype": EXPERT_DTYPE, "quantization_config": QUANTIZATION_CONFIG}
    write_json(out / "config.json", config)
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    write_json(out / "generation_config.json", generation)
    for path in (work_dir / "tokenizer").iterdir():
        shutil.copyfile(path, out / path.name)
    (out / "model.safetensors").chmod(0o644)
    print(f"{out}: {len(tensors)} tensors, {total} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert a trained state to the released layout.")
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("checkpoint_dir", type=Path)
    arguments = parser.parse_args()
    write_checkpoint(arguments.work_dir, arguments.checkpoint_dir)


if __name__ == "__main__":
    main()
