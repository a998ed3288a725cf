"""A whole checkpoint in each format: what is read and computed is what its bf16 twin gives."""

import json
from pathlib import Path

import pytest
import torch

from actors.experts.check import check_checkpoint
from actors.experts.checkpoint import ExpertReader
from actors.experts.families import read_expert_spec
from actors.experts.refusal import ModelRefused
from actors.experts.spec import ExpertSpec
from actors.kernels.bf16_at_load import Bf16AtLoad
from actors.kernels.slot_kernel import SlotKernel
from actors.kernels.vllm_cpu_bf16 import VllmCpuBf16
from tests.actors.kernels.building import FEATURES, make_batch, needs_vllm_ops
from tests.checkpoints.make import make_checkpoint
from tests.checkpoints.quantised import FORMATS, quantise_experts
from tests.checkpoints.writer import write_json

Pair = tuple[ExpertSpec, ExpertSpec]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: make_checkpoint(kind, folder / kind) for kind in ("qwen3_moe", "deepseek_v3")}


@pytest.fixture(params=FORMATS)
def pair(request, models, tmp_path) -> Pair:
    """The checkpoint in a format, and its twin."""
    kind = "deepseek_v3" if "int4" in request.param else "qwen3_moe"
    quantised, twin = tmp_path / "quantised", tmp_path / "twin"
    quantise_experts(models[kind], quantised, twin, request.param)
    spec = read_expert_spec(quantised)
    check_checkpoint(spec)
    return spec, read_expert_spec(twin)


def test_experts_are_their_twins(pair):
    spec, plain = pair
    layer = spec.layers[-1]
    one, other = ExpertReader(spec).read(layer, 5), ExpertReader(plain).read(layer, 5)
    assert one.nbytes == spec.bytes_per_expert < plain.bytes_per_expert
    decode = spec.weight_format.decode
    assert torch.equal(decode(one.w13, one.w13_scale, torch.bfloat16, halves=2), other.w13)
    assert torch.equal(decode(one.w2, one.w2_scale, torch.bfloat16), other.w2)


@needs_vllm_ops
def test_a_kernel_gives_the_sums_of_the_twin(pair):
    spec, plain = pair
    layer, experts = spec.layers[0], [3, 0, 7]
    inner = VllmCpuBf16(plain, FEATURES)
    one = SlotKernel(spec, Bf16AtLoad(inner, spec.weight_format), ExpertReader(spec).read)
    other = SlotKernel(plain, inner, ExpertReader(plain).read)
    batch = make_batch(9, spec.hidden_size, [(row, experts[row % 3]) for row in range(9)])
    sums = []
    for kernel in (one, other):
        kernel.load(layer, experts)
        sums.append(kernel.compute(layer, *batch))
    assert torch.equal(*sums)
    assert sums[0].abs().amax(1).min() > 0


def test_modelopts_older_files_have_the_quantisation_apart(models, tmp_path):
    folder = tmp_path / "quantised"
    quantise_experts(models["qwen3_moe"], folder, tmp_path / "twin", "nvfp4-modelopt")
    new = read_expert_spec(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    write_json(folder / "config.json", config)
    apart = {
        "producer": {"name": "modelopt", "version": "0.29.0"},
        "quantization": {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]},
    }
    write_json(folder / "hf_quant_config.json", apart)
    assert read_expert_spec(folder) == new


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("fp8-rows", "weight_scale"),
        ("int4-zeros", "weight_zero_point"),
        ("awq", "qzeros"),
        ("nvfp4", "weight_global_scale"),
        ("nvfp4-modelopt", "weight_scale_2"),
    ],
)
def test_a_tensor_that_is_missing_is_named(name, missing, models, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "quantised"
    quantise_experts(models["qwen3_moe"], folder, tmp_path / "twin", name)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    lost = f"model.layers.1.mlp.experts.2.up_proj.{missing}"
    del tensors[lost]
    save_file(tensors, file)
    with pytest.raises(ModelRefused, match=f"tensor {lost} is missing from every safetensors"):
        check_checkpoint(read_expert_spec(folder))
