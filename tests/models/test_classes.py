"""Every class of routed experts: replaced, or refused by name with what would be lost."""

import pytest

from tests.models.vllm_sources import modules_with_experts, registered, subclasses

pytest.importorskip("vllm", reason="these classes are vLLM's")

from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

from actors.vllm_layers import held
from actors.vllm_plugin.vllm_config import PREDICTORS, REASONS

REFUSED = {"DeepseekV4HeterogeneousSharedRoutedExperts": "_get_quant_method"}
"""Of the installed vLLM, and what they define: AMD's DeepSeek-V4 with a shared expert among the
routed ones, which vLLM builds on AMD's devices only."""


FLAG_OF_TABLE = {
    "_EMBEDDING_MODELS": "runner",
    "_SEQUENCE_CLASSIFICATION_MODELS": "runner",
    "_SPECULATIVE_DECODING_MODELS": "speculative_config",
}
"""Table of vLLM's registry -> the flag by which an engine of a mesh refuses its models."""
NOT_SERVED = {
    "DeepseekV3BidirectionalModel": "runner",
    "InternS2MobiusMTP": "speculative_config",
    "JambaForSequenceClassification": "runner",
}
"""Architectures with routed experts that are refused, and by which flag."""


def test_classes_of_the_installed_vllm():
    known = subclasses()
    assert {"GptOssRoutedExperts", "DbrxExperts", "TransformersRoutedExperts"} <= known.keys()
    refused = {
        name: beyond for name, defined in known.items() if (beyond := held.beyond_loading(defined))
    }
    assert refused.keys() == REFUSED.keys()
    for name, method in REFUSED.items():
        assert method in refused[name]


def test_most_architectures_build_their_experts_by_the_same_class():
    """What is not `RoutedExperts` itself is one of the classes above."""
    with_experts = modules_with_experts()
    built = {name: entry for name, entry in registered().items() if entry.module in with_experts}
    assert len(built) >= 50
    assert {"Glm4MoeForCausalLM", "OlmoeForCausalLM", "MiniMaxM2ForCausalLM"} <= built.keys()
    refused = {
        name: FLAG_OF_TABLE[entry.table]
        for name, entry in built.items()
        if entry.table not in ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")
    }
    assert refused == NOT_SERVED
    assert set(refused.values()) <= REASONS.keys()


def test_drafters_of_the_mesh_are_classes_of_vllm():
    tables = {name: entry.table for name, entry in registered().items()}
    assert {tables[name] for name in PREDICTORS} == {"_SPECULATIVE_DECODING_MODELS"}


class Mixed:
    pass


def test_a_class_that_only_loads_in_its_own_way_is_replaced():
    class NewFamilyExperts(RoutedExperts):
        def weight_loader(self, *arguments, **named):
            return super().weight_loader(*arguments, **named)

        def _split(self):
            """Serves the loader."""

    with held.replaced(Mixed):
        made = op_registry_oot["NewFamilyExperts"]
        assert issubclass(made, Mixed)
        assert issubclass(made, NewFamilyExperts)
    assert "NewFamilyExperts" not in op_registry_oot


def test_a_class_that_computes_more_is_refused_where_a_model_builds_it():
    class ScalingExperts(RoutedExperts):
        def forward_modular(self, *arguments, **named):
            return 2 * super().forward_modular(*arguments, **named)

    with (
        held.replaced(Mixed),
        pytest.raises(held.UnknownLayer, match="ScalingExperts defines forward_modular beyond"),
    ):
        ScalingExperts("model.layers.0.mlp.experts")


def test_a_vendors_class_is_derived_from():
    class VendorsExperts(RoutedExperts):
        def forward_modular(self, *arguments, **named):
            """The device's way to compute the same."""

    op_registry_oot["RoutedExperts"] = VendorsExperts
    try:
        with held.replaced(Mixed):
            assert issubclass(op_registry_oot["RoutedExperts"], VendorsExperts)
        assert op_registry_oot["RoutedExperts"] is VendorsExperts
    finally:
        del op_registry_oot["RoutedExperts"]
