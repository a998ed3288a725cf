"""Every family and layout: the spec it yields, and the tensors read from it."""

import pytest
import torch

from actors.experts.check import check_checkpoint
from actors.experts.checkpoint import ExpertReader
from actors.experts.families import read_expert_spec
from actors.experts.spec import Activation, GateActivation
from tests.actors.experts.tiny import Case, Shape, cases, fused, write

SHAPE = Shape()
CASES = cases(SHAPE)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_spec_and_tensors(case: Case, tmp_path):
    truth = case.truth(SHAPE)
    write(tmp_path, case.config, case.tensors(truth), files=2)

    spec = read_expert_spec(tmp_path)
    check_checkpoint(spec)

    assert spec.architecture == case.config["architectures"][0]
    assert spec.layers == tuple(case.layers)
    assert (spec.num_experts, spec.top_k) == (4, 2)
    assert (spec.hidden_size, spec.intermediate_size) == (64, 32)
    assert spec.weight_format is case.weight_format
    assert spec.has_bias is case.bias
    reader = ExpertReader(spec)
    for (layer, number), expected in truth.items():
        read = reader.read(layer, number)
        assert len(read.tensors()) == len(expected.tensors())
        for got, want in zip(read.tensors(), expected.tensors(), strict=True):
            assert got.dtype == want.dtype
            assert torch.equal(got.contiguous().view(torch.uint8), want.view(torch.uint8))


def test_fused_fp8(tmp_path):
    """As transformers 5 holds it: scales are one matrix over gate and up rows."""
    shape = Shape(layers=1, hidden=128, inter=128)
    case = next(case for case in cases(shape) if case.name == "qwen3-fp8")
    truth = case.truth(shape)
    tensors = fused(truth)
    for name, scales in (
        ("gate_up_proj", [one.w13_scale for one in truth.values()]),
        ("down_proj", [one.w2_scale for one in truth.values()]),
    ):
        tensors[f"model.layers.0.mlp.experts.{name}_scale_inv"] = torch.stack(scales)
    write(tmp_path, case.config, tensors)
    spec = read_expert_spec(tmp_path)
    check_checkpoint(spec)
    read = ExpertReader(spec).read(0, 2)
    assert torch.equal(read.w13_scale, truth[0, 2].w13_scale)
    assert torch.equal(read.w2.view(torch.uint8), truth[0, 2].w2.view(torch.uint8))


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("qwen3-bf16", Activation()),
        ("v3-fp8", Activation()),
        ("v4-mxfp4", Activation(limit=10.0)),
        ("gpt-oss-bf16", Activation(GateActivation.SWIGLU_OAI, limit=7.0, alpha=1.702)),
    ],
)
def test_activation(name: str, activation: Activation, tmp_path):
    case = next(case for case in CASES if case.name == name)
    write(tmp_path, case.config, case.tensors(case.truth(SHAPE)))
    assert read_expert_spec(tmp_path).activation == activation


def test_layers_of_multi_token_prediction_are_read_where_they_are_asked_for(tmp_path):
    case = next(case for case in CASES if case.name == "v3-fp8")
    truth = case.truth(SHAPE)
    tensors = case.tensors(truth)
    last = case.layers[-1]
    config = case.config | {"num_hidden_layers": last, "num_nextn_predict_layers": 1}
    write(tmp_path, config, tensors)
    assert read_expert_spec(tmp_path).layers == tuple(case.layers[:-1])
    assert read_expert_spec(tmp_path).predictors == 0
    spec = read_expert_spec(tmp_path, predictors=True)
    check_checkpoint(spec)
    assert (spec.layers, spec.predictors) == (tuple(case.layers), 1)
    assert torch.equal(ExpertReader(spec).read(last, 2).w2_scale, truth[last, 2].w2_scale)


@pytest.mark.parametrize(
    ("change", "layers"),
    [
        ({"decoder_sparse_step": 2}, (1, 3, 5)),
        ({"mlp_only_layers": [0, 4]}, (1, 2, 3, 5)),
        ({"architectures": ["DeepseekV3ForCausalLM"], "first_k_dense_replace": 3}, (3, 4, 5)),
        (
            {
                "architectures": ["DeepseekV3ForCausalLM"],
                "first_k_dense_replace": 1,
                "moe_layer_freq": 2,
            },
            (2, 4),
        ),
    ],
)
def test_dense_layers_have_no_experts(change, layers, tmp_path):
    shape = Shape(layers=6)
    case = cases(shape)[0]
    config = case.config | {"n_routed_experts": shape.experts} | change
    truth = {key: value for key, value in case.truth(shape).items() if key[0] in layers}
    write(tmp_path, config, case.tensors(truth))
    spec = read_expert_spec(tmp_path)
    assert spec.layers == layers
    check_checkpoint(spec)
