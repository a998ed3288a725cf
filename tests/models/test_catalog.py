"""What a dry run finds, what is kept of it, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.experts.catalog import STACKED, ExpertCatalog, read_catalog
from actors.experts.families import read_expert_spec
from actors.experts.refusal import ModelRefused
from tests.checkpoints.make import make_checkpoint
from tests.models.in_process import catalog_of, dry_run_here

pytest.importorskip("vllm", reason="vLLM's loaders are asked")


@pytest.fixture
def glm(tmp_path):
    return make_checkpoint("glm4_moe", tmp_path / "glm4_moe")


def refusal(model: Path) -> str:
    with pytest.raises(ModelRefused) as refused:
        read_expert_spec(model, dry_run=dry_run_here)
    message = str(refused.value)
    assert "\n" not in message
    return message


def edit_config(model: Path, **changes: object) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(model: Path, edit) -> None:
    file = model / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_experts_one_by_one(glm):
    catalog = catalog_of(glm)
    (layer,) = catalog.layers
    assert (layer.layer, layer.experts, layer.top_k) == (1, 16, 4)
    assert (layer.hidden, layer.intermediate) == (128, 64)
    assert layer.bytes_per_expert == 3 * 128 * 64 * 2
    assert catalog.plain
    assert len(catalog.tensors) == 3 * 16
    assert catalog.tensors["model.layers.1.mlp.experts.7.up_proj.weight"] == (1, 7)
    shared = "model.layers.1.mlp.shared_experts.up_proj.weight"
    assert shared not in catalog.tensors


def test_tensors_that_hold_every_expert(tmp_path):
    catalog = catalog_of(make_checkpoint("llama4_text", tmp_path / "model"))
    assert {expert for _, expert in catalog.tensors.values()} == {STACKED}
    assert len(catalog.tensors) == 2 * len(catalog.layers)
    assert not catalog.plain  # weights on the experts' inputs


def test_it_is_made_once_for_a_checkpoint(glm):
    made = []

    def counting(model: Path, trust: bool) -> ExpertCatalog:
        made.append(model)
        return dry_run_here(model, trust)

    edit_config(glm, rope_theta=30000.0)
    first = read_catalog(glm, dry_run=counting)
    assert read_catalog(glm, dry_run=counting) == first
    edit_config(glm, rope_theta=20000.0)
    read_catalog(glm, dry_run=counting)
    assert len(made) == 2


def test_what_is_kept_is_what_was_found(glm):
    catalog = dataclasses.replace(catalog_of(glm), inexact="something")
    again = ExpertCatalog.from_json(json.loads(json.dumps(catalog.to_json())))
    assert again == catalog
    with pytest.raises(ValueError, match="schema"):
        ExpertCatalog.from_json(catalog.to_json() | {"schema": 0})


def test_a_tensor_the_loader_does_not_know(glm):
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.experts.3.side_proj.weight"] = torch.zeros(2, 2)

    edit_tensors(glm, add)
    assert refusal(glm) == (
        "vLLM's loader of this model does not take tensor "
        "model.layers.1.mlp.experts.3.side_proj.weight"
    )


def test_an_expert_that_lacks_a_tensor(glm):
    edit_tensors(glm, lambda tensors: tensors.pop("model.layers.1.mlp.experts.3.up_proj.weight"))
    assert (
        "expert 3 of model.layers.1.mlp.experts has 2 tensors, others have 3: "
        "download the checkpoint again"
    ) in refusal(glm)


def test_an_architecture_vllm_has_not(glm):
    edit_config(glm, architectures=["NobodyKnowsMoeForCausalLM"], model_type="nobody_knows_moe")
    assert "vLLM does not take this model" in refusal(glm)


def test_code_that_comes_with_the_checkpoint(glm):
    edit_config(
        glm,
        architectures=["OwnMoeForCausalLM"],
        model_type="own_moe",
        auto_map={"AutoConfig": "configuration_own.OwnConfig"},
    )
    (glm / "configuration_own.py").write_text("raise SystemExit('it was run')\n")
    assert "set engines.vllm.trust_remote_code to true" in refusal(glm)


def test_a_format_without_a_kernel_on_this_device(glm):
    edit_config(glm, quantization_config={"quant_method": "modelopt", "quant_algo": "NVFP4"})
    assert "vLLM does not" in refusal(glm)


@pytest.mark.long
def test_a_process_of_its_own_finds_the_same(glm, monkeypatch, tmp_path):
    here = catalog_of(glm)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert read_catalog(glm) == here
