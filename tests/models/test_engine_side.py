"""The model that an engine of a mesh builds: without experts, all else loaded, rows to the mesh."""

from types import SimpleNamespace

import pytest
import torch

from actors.experts.families import read_expert_spec
from actors.experts.fingerprint import fingerprint
from tests.checkpoints.make import make_checkpoint
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

    def loaded(kind):
        model = make_checkpoint(kind, tmp_path / kind)
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


def test_a_mesh_of_another_model_is_refused(load):
    load("glm4_moe")
    view = connection.connect_mesh()
    view.epoch.num_experts = 8
    with pytest.raises(ValueError, match="has 16 routed experts, but mesh 'm' serves 8 experts"):
        routed_experts.check_layer("model.layers.1.mlp.experts", SimpleNamespace(num_experts=16))
