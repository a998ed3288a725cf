"""Which number formats of experts vLLM has a kernel for on this machine, and which line refuses.

  python -m benchmarks.formats [--into docs/models.md]

vLLM builds a tiny GLM-4-MoE without memory for its weights, once for each format that config.json
can ask for, and then one layer with two experts, which gets a row; what it says is the table, put
between the markers of the file that is named.
"""

import argparse
import json
import os
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.generate import ENVIRONMENT
from tests.checkpoints.make import make_checkpoint

BEGIN, END = "<!-- formats: begin -->", "<!-- formats: end -->"

DENSE = ["re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"]
LEFT_OUT = [*DENSE, "re:.*mlp\\.gate$", "lm_head"]


def compressed(weights: dict[str, Any], inputs: dict[str, Any] | None, name: str) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": LEFT_OUT,
    }


def numbers(bits: int, kind: str, strategy: str, **others: Any) -> dict[str, Any]:
    common = {"symmetric": True, "dynamic": False}
    return {"num_bits": bits, "type": kind, "strategy": strategy} | common | others


NOT_EXPERTS = ("self_attn", "shared_experts", "layers.0.mlp")
TOKEN_INT8 = numbers(8, "int", "token", dynamic=True)
TOKEN_FP8 = numbers(8, "float", "token", dynamic=True)
PACKED = "pack-quantized"
FORMATS: dict[str, dict[str, Any]] = {
    "INT4 in groups of 32 (compressed-tensors)": compressed(
        numbers(4, "int", "group", group_size=32), None, PACKED
    ),
    "INT4 in groups of 32 with zero points (compressed-tensors)": compressed(
        numbers(4, "int", "group", group_size=32) | {"symmetric": False}, None, PACKED
    ),
    "INT8 in groups of 32 (compressed-tensors)": compressed(
        numbers(8, "int", "group", group_size=32), None, PACKED
    ),
    "INT8 W8A8 (compressed-tensors)": compressed(
        numbers(8, "int", "channel"), TOKEN_INT8, "int-quantized"
    ),
    "INT4 W4A8 (compressed-tensors)": compressed(
        numbers(4, "int", "channel"), TOKEN_INT8, "int-quantized"
    ),
    "FP8 per channel (compressed-tensors)": compressed(
        numbers(8, "float", "channel"), TOKEN_FP8, "float-quantized"
    ),
    "FP8 per tensor (compressed-tensors)": compressed(
        numbers(8, "float", "tensor"), numbers(8, "float", "tensor"), "float-quantized"
    ),
    "FP8 in blocks of 128 x 128": {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
        "ignored_layers": ["re:.*"],
    },
    "AWQ": {
        "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["self_attn", "shared_experts", "layers.0.mlp", "mlp.gate"],
    },
    "GPTQ": {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True,
        "dynamic": {f"-:.*{part}.*": {} for part in NOT_EXPERTS},
    },
    "MXFP4": {"quant_method": "mxfp4", "modules_to_not_convert": LEFT_OUT},
    "NVFP4 (modelopt)": {
        "quant_method": "modelopt", "quant_algo": "NVFP4",
        "ignore": ["*self_attn*", "*shared_experts*", "*layers.0.mlp*", "*mlp.gate", "lm_head"],
    },
}  # fmt: skip
"""What config.json says -> as `quantization_config`. Only experts are quantised, so that nothing
else is refused."""


def ask(model: Path, quantisation: dict[str, Any]) -> tuple[str, str]:
    """(class of vLLM's method, "" or why it is refused)."""
    from actors.vllm_layers.skeleton import Skeleton

    file = model / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": quantisation}
    file.write_text(json.dumps(config))
    method = ""
    try:
        skeleton = Skeleton(model)
        name, layer = next(iter(skeleton.layers.items()))
        method = type(layer.quant_method).__name__
        compute(skeleton.build_layer(name, [0, 1], torch.device("cpu")))
    except Exception as error:  # whatever vLLM raises
        return method, _reason(error.__cause__ or error)
    return method, ""


def compute(layer: Any) -> None:
    """Pack two experts of zeros and send a row through one of them."""
    for parameter in layer.parameters():
        parameter.data.zero_()
    config = layer.moe_config
    config.num_experts = config.num_logical_experts = layer.global_num_experts = 2
    layer.quant_method.process_weights_after_loading(layer)
    layer._ensure_moe_quant_config_init()
    rows = torch.zeros(1, layer.hidden_size, dtype=torch.bfloat16)
    layer.quant_method.apply(
        layer,
        rows,
        topk_weights=torch.ones(1, 1),
        topk_ids=torch.zeros(1, 1, dtype=torch.int32),
        shared_experts=None,
        shared_experts_input=None,
    )


def _reason(cause: BaseException) -> str:
    """What vLLM said, and where."""
    last = traceback.extract_tb(cause.__traceback__)[-1]
    where = Path(last.filename)
    place = "/".join(where.parts[-2:]) if "vllm" in where.parts else where.name
    said = str(cause).split(" (")[0].split(". ")[0] or last.line or type(cause).__name__
    return f"`{place}:{last.lineno}`: {' '.join(said.split())}"


def table(model: Path) -> str:
    lines = ["| format | method of vLLM | refused by |", "|---|---|---|"]
    for name, quantisation in FORMATS.items():
        method, refusal = ask(model, quantisation)
        said = refusal.replace("|", "\\|")
        lines.append(f"| {name} | {f'`{method}`' if method else ''} | {said or 'nothing'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "ERROR"})
    with tempfile.TemporaryDirectory(prefix="xm") as folder:
        made = table(make_checkpoint("glm4_moe", Path(folder) / "glm"))
    print(made)
    if arguments.into:
        text = arguments.into.read_text()
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        arguments.into.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")


if __name__ == "__main__":
    main()
