"""What is refused, and that the message names the thing and the fix."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from actors.experts.catalog import ExpertCatalog
from actors.experts.check import check_checkpoint
from actors.experts.families import read_expert_spec
from actors.experts.formats.base import NumberFormat
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import FP8_BLOCK128
from actors.experts.refusal import ModelRefused
from tests.actors.experts.tiny import (
    FP8_CONFIG,
    PROJ,
    Shape,
    Tensors,
    experts_of,
    one_by_one,
    qwen3_config,
    write,
)

SHAPE = Shape(layers=2)
CONFIG = qwen3_config(SHAPE)
STEM = "model.layers.{layer}.mlp.experts.{expert}"
UP = "model.layers.1.mlp.experts.3.up_proj.weight"


def tensors(weight_format: NumberFormat = BF16) -> Tensors:
    truth = experts_of([0, 1], SHAPE, weight_format)
    return one_by_one(truth, STEM, PROJ, ".weight_scale_inv")


def no_vllm(_path: Path, _trust: bool) -> ExpertCatalog:
    """In place of a dry run: `tests/models` has real ones."""
    raise ModelRefused("vLLM does not take it either")


def refusal(path: Path) -> str:
    with pytest.raises(ModelRefused) as refused:
        check_checkpoint(read_expert_spec(path, dry_run=no_vllm))
    message = str(refused.value)
    assert "\n" not in message
    return message.replace(str(path), "MODEL")


def prediction_refusal(path: Path, **config: object) -> str:
    write(path, CONFIG | config, tensors())
    with pytest.raises(ModelRefused) as refused:
        read_expert_spec(path, predictors=True, dry_run=no_vllm)
    return str(refused.value).replace(str(path), "MODEL")


def test_multi_token_prediction_of_a_family_whose_layers_are_not_read(tmp_path):
    assert prediction_refusal(tmp_path) == (
        "MODEL: shards do not serve the multi-token prediction of Qwen3MoeForCausalLM, only of "
        "DeepseekV3ForCausalLM: leave engines.vllm.speculative_config out, or use its method ngram"
    )


def test_multi_token_prediction_without_its_layers(tmp_path):
    assert prediction_refusal(tmp_path, architectures=["DeepseekV3ForCausalLM"]) == (
        "MODEL/config.json: num_nextn_predict_layers is None, so there is no multi-token "
        "prediction to draft with: leave engines.vllm.speculative_config out"
    )


def test_no_config(tmp_path):
    expected = "MODEL has no config.json: give the directory of a Hugging Face checkpoint"
    assert refusal(tmp_path) == expected


def test_broken_config(tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert refusal(tmp_path).startswith("MODEL/config.json is not valid JSON (")


def test_dense_model(tmp_path):
    write(tmp_path, {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 64}, tensors())
    assert refusal(tmp_path) == (
        "MODEL: Qwen3ForCausalLM has no routed experts; serve a dense model with plain vLLM instead"
    )


def test_moe_architecture_with_every_layer_dense(tmp_path):
    write(tmp_path, CONFIG | {"mlp_only_layers": [0, 1]}, tensors())
    assert "Qwen3MoeForCausalLM has no routed experts" in refusal(tmp_path)


def test_an_architecture_that_only_vllm_may_read(tmp_path):
    write(tmp_path, CONFIG | {"architectures": ["OlmoeForCausalLM"]}, tensors())
    assert refusal(tmp_path) == "vLLM does not take it either"


def test_missing_config_entry(tmp_path):
    config = {key: value for key, value in CONFIG.items() if key != "moe_intermediate_size"}
    write(tmp_path, config, tensors())
    assert refusal(tmp_path) == (
        "MODEL/config.json: moe_intermediate_size is None, not a positive number"
    )


def test_no_safetensors(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert refusal(tmp_path) == (
        "MODEL has no safetensors files: convert the checkpoint to safetensors"
    )


def test_no_experts_in_the_files(tmp_path):
    write(tmp_path, CONFIG, {"model.norm.weight": torch.ones(64)})
    assert refusal(tmp_path) == (
        "MODEL has no tensor model.layers.0.mlp.experts.0.down_proj.weight or "
        "model.layers.0.mlp.experts.down_proj: not a complete Qwen3MoeForCausalLM checkpoint"
    )


def test_missing_tensor_of_a_single_file(tmp_path):
    stored = tensors()
    del stored[UP]
    write(tmp_path, CONFIG, stored)
    assert refusal(tmp_path) == f"MODEL: tensor {UP} is missing from every safetensors file"


def test_missing_tensor_names_the_file_of_the_index(tmp_path):
    write(tmp_path, CONFIG, tensors(), files=2)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    file = index["weight_map"][UP]
    kept = {
        name: tensor
        for name, tensor in tensors().items()
        if index["weight_map"][name] == file and name != UP
    }
    save_file(kept, tmp_path / file)
    assert refusal(tmp_path) == f"MODEL: tensor {UP} is missing from {file}"


def test_missing_file(tmp_path):
    write(tmp_path, CONFIG, tensors(), files=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert refusal(tmp_path) == (
        "MODEL/model-00002-of-00002.safetensors is missing: download the whole checkpoint"
    )


def test_half_downloaded_file(tmp_path):
    write(tmp_path, CONFIG, tensors())
    file = tmp_path / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(size - 100)
    assert refusal(tmp_path) == (
        f"MODEL/model.safetensors has {size - 100} of {size} bytes: download it again"
    )


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0not json"])
def test_file_of_another_kind(content, tmp_path):
    write(tmp_path, CONFIG, tensors())
    (tmp_path / "model.safetensors").write_bytes(content)
    assert refusal(tmp_path).startswith("MODEL/model.safetensors is not a safetensors file: ")


def test_wrong_shape(tmp_path):
    write(tmp_path, CONFIG, tensors() | {UP: torch.zeros(32, 48, dtype=torch.bfloat16)})
    assert refusal(tmp_path) == (
        f"MODEL/model.safetensors: tensor {UP} has shape [32, 48], expected [32, 64]"
    )


def test_wrong_dtype_of_one_tensor(tmp_path):
    write(tmp_path, CONFIG, tensors() | {UP: torch.zeros(32, 64)})
    assert refusal(tmp_path) == (
        f"MODEL/model.safetensors: tensor {UP} has dtype F32, expected BF16"
    )


def test_unsupported_dtype(tmp_path):
    write(tmp_path, CONFIG, {name: tensor.half() for name, tensor in tensors().items()})
    assert refusal(tmp_path) == (
        "MODEL: weights of dtype F16 are not supported; supported: BF16 (bf16), F8_E4M3 (fp8), "
        "I8 or U8 (mxfp4) (model.layers.0.mlp.experts.0.down_proj.weight in model.safetensors)"
    )


def test_fp8_without_block_scales(tmp_path):
    stored = tensors(FP8_BLOCK128)
    scale = UP.replace(".weight", ".weight_scale_inv")
    write(tmp_path, CONFIG, stored | {scale: torch.ones(1)})
    assert refusal(tmp_path) == (
        f"MODEL/model.safetensors: tensor {scale} has shape [1], expected [1, 1]"
    )


def test_fp8_of_another_block_size(tmp_path):
    config = CONFIG | {"quantization_config": FP8_CONFIG | {"weight_block_size": [64, 64]}}
    write(tmp_path, config, tensors(FP8_BLOCK128))
    assert refusal(tmp_path) == (
        "MODEL: fp8 with weight_block_size [64, 64] is not supported; supported: "
        "fp8 in 128x128 blocks, fp8 with a scale for each matrix (compressed-tensors, fp8) "
        "(model.layers.0.mlp.experts.0.down_proj.weight in model.safetensors)"
        "; and vLLM does not take it either"
    )


def test_unsupported_quantization(tmp_path):
    write(tmp_path, CONFIG | {"quantization_config": {"quant_method": "aqlm"}}, tensors())
    assert refusal(tmp_path) == (
        "MODEL: quantization aqlm is not supported; supported are bf16, fp8 in 128x128 blocks, "
        "fp8 in 128x128 blocks (compressed-tensors), "
        "mxfp4, fp8 with a scale for each output row (compressed-tensors), "
        "fp8 with a scale for each matrix (compressed-tensors, fp8), nvfp4 (compressed-tensors), "
        "nvfp4 (modelopt), int8 in groups of 32, 64, 128 or a row (compressed-tensors), "
        "int4 in groups of 32, 64, 128 or a row (compressed-tensors), "
        "int4 with zero points in groups of 32, 64, 128 or a row (compressed-tensors), "
        "int4 in groups of 32, 64, 128 or a row (gptq), "
        "int4 with zero points in groups of 32, 64, 128 or a row (gptq), "
        "int4 with zero points in groups of 32, 64, 128 or a row (awq) "
        "(model.layers.0.mlp.experts.0.down_proj.weight in model.safetensors)"
        "; and vLLM does not take it either"
    )


def test_a_repaired_file_is_read_again(tmp_path):
    stored = tensors()
    up = stored.pop(UP)
    write(tmp_path, CONFIG, stored)
    refusal(tmp_path)
    write(tmp_path, CONFIG, stored | {UP: up})
    check_checkpoint(read_expert_spec(tmp_path))
