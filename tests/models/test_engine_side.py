"""The model that an engine of a mesh builds: without experts, all else loaded, rows to the mesh."""

import json
from types import SimpleNamespace

import pytest
import torch

from actors.experts.families import read_expert_spec
from actors.experts.fingerprint import fingerprint
from actors.experts.refusal import ModelRefused
from tests.checkpoints.make import make_checkpoint
from tests.checkpoints.quantised import quantise_experts
from tests.models.in_process import dry_run_here

pytest.importorskip("vllm", reason="the model is vLLM's")

from vllm.config import set_current_vllm_config
from vllm.config.load import LoadConfig
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.rotary_embedding import _ROPE_DICT
from vllm.model_executor.model_loader.utils import (
    get_model_architecture,
    initialize_model,
)
from vllm.utils.torch_utils import set_default_torch_dtype

from actors.vllm_layers.skeleton import enter, vllm_config
from actors.vllm_plugin import connection, routed_experts
from actors.vllm_plugin.dense_kernels import missing_kernels_named
from actors.vllm_plugin.loader import ExpertlessLoader


class Recorder:
    """In the place of the mesh's backend: twice the rows, and what it was sent."""

    def __init__(self):
        self.calls = []

    def send(self, layer, rows, topk_weights, topk_ids, sample=0):
        self.calls.append((layer, topk_ids.shape))
        return 2 * rows

    def wait(self, call):
        return call


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Builds and loads the model of a kind as an engine of a mesh does."""
    before = dict(op_registry_oot)

    def loaded(kind, architecture=None, quantised=None):
        model = make_checkpoint(kind, tmp_path / kind)
        if quantised:
            folder, twin = tmp_path / "quantised", tmp_path / "twin"
            quantise_experts(model, folder, twin, quantised, attention=True)
            model = folder
        if architecture:
            file = model / "config.json"
            config = json.loads(file.read_text()) | {"architectures": [architecture]}
            file.write_text(json.dumps(config))
        spec = read_expert_spec(model, dry_run=dry_run_here)
        _ROPE_DICT.clear()  # the dry run's model has its tables on meta
        epoch = SimpleNamespace(layers=spec.layers, num_experts=spec.num_experts)
        view = SimpleNamespace(
            epoch=epoch, mesh="m", model_path=str(model), fingerprint=fingerprint(model)
        )
        monkeypatch.setattr(connection, "_views", SimpleNamespace(current=lambda: view))
        config = vllm_config(model, trust_remote_code=False)
        enter(config)
        get_model_architecture(config.model_config)  # imports the classes of its module
        routed_experts.register_routed_experts()
        with set_current_vllm_config(config), set_default_torch_dtype(torch.bfloat16):
            with missing_kernels_named(config.model_config):
                built = initialize_model(config)
            loader = ExpertlessLoader(LoadConfig(use_tqdm_on_load=False))
            loader.load_weights(built, config.model_config)
        return built, spec

    yield loaded
    _ROPE_DICT.clear()
    op_registry_oot.clear()
    op_registry_oot.update(before)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "glm4_moe", "llama4_text"])
def test_every_layer_sends_its_rows_to_the_mesh(load, monkeypatch, kind):
    model, spec = load(kind)
    remote = [
        layer for layer in model.modules() if isinstance(layer, routed_experts.RemoteRoutedExperts)
    ]
    assert len(remote) == len(spec.layers)
    backend = Recorder()
    monkeypatch.setattr(connection, "_backend", backend)
    for layer in remote:
        assert all(parameter.ndim == 1 for parameter in layer.parameters())  # the router's bias
        rows = torch.randn(3, spec.hidden_size).bfloat16()
        ids = torch.zeros(3, spec.top_k, dtype=torch.int32)
        sums = layer.quant_method.apply(layer, rows, torch.ones(3, spec.top_k), ids, None, None)
        assert torch.equal(sums, 2 * rows)
    assert sorted(layer for layer, _ in backend.calls) == list(spec.layers)


@pytest.fixture
def new_architecture():
    """A model class that vLLM gets from somebody else's plugin."""
    from vllm.model_executor.models.glm4_moe import Glm4MoeForCausalLM
    from vllm.model_executor.models.registry import ModelRegistry

    class BrandNewForCausalLM(Glm4MoeForCausalLM):
        pass

    ModelRegistry.register_model("BrandNewForCausalLM", BrandNewForCausalLM)
    yield "BrandNewForCausalLM"
    del ModelRegistry.models["BrandNewForCausalLM"]


def test_an_architecture_that_is_registered_later_is_served_as_any_other(load, new_architecture):
    model, spec = load("glm4_moe", new_architecture)
    assert type(model).__name__ == spec.architecture == new_architecture
    remote = [
        layer for layer in model.modules() if isinstance(layer, routed_experts.RemoteRoutedExperts)
    ]
    assert len(remote) == len(spec.layers) == 1


needs_no_amx = pytest.mark.skipif(
    torch.cpu._is_amx_tile_supported(), reason="with AMX vLLM has kernels for it"
)


@pytest.mark.parametrize(
    ("quantised", "said"),
    [
        ("nvfp4", "MarlinNvFp4LinearKernel is not supported"),
        pytest.param(
            "fp8-whole", r"as model\.layers\.0\.self_attn\.qkv_proj asks for", marks=needs_no_amx
        ),
    ],
)
def test_attention_without_a_kernel_here_is_named(load, quantised, said):
    expected = rf"no kernel here for layers that stay .* compressed-tensors \(.*{said}.*\): serve"
    with pytest.raises(ModelRefused, match=expected):
        load("qwen3_moe", quantised=quantised)


@pytest.mark.parametrize(
    ("quantised", "name", "dtype"),
    [("fp8-rows", "weight", torch.float8_e4m3fn), ("int4", "weight_packed", torch.int32)],
)
def test_attention_that_vllm_computes_here_stays_quantised(load, quantised, name, dtype):
    model, _ = load("qwen3_moe", quantised=quantised)
    assert getattr(model.model.layers[0].self_attn.qkv_proj, name).dtype is dtype


def test_a_mesh_of_another_model_is_refused(load):
    load("glm4_moe")
    view = connection.connect_mesh()
    view.epoch.num_experts = 8
    with pytest.raises(ValueError, match="has 16 routed experts, but mesh 'm' serves 8 experts"):
        routed_experts.check_layer("model.layers.1.mlp.experts", SimpleNamespace(num_experts=16))
