"""Shards made of vLLM's own layers, and our kernels fed by vLLM's loader."""

from pathlib import Path

import pytest
import torch

from actors.kernels.base import ExpertsMissing
from actors.kernels.choose import choose_kernel
from tests.checkpoints.make import make_checkpoint
from tests.models.in_process import CPU, batch_of, difference, spec_of, vllm_layers

pytest.importorskip("vllm", reason="these layers are vLLM's")

ROUNDING = 0.004
"""Two kernels that round gate, up, product and output to bf16 in other places."""

QUICK = ("glm4_moe", "olmoe", "granitemoe", "llama4_text")
"""Experts one by one behind a dense layer, everywhere, fused [E, ...], fused and transposed with
weights on the experts' inputs."""
SLOW = (
    "deepseek_v2", "dots1", "ernie4_5_moe", "hunyuan_v1_moe", "jamba", "lfm2_moe", "phimoe",
    "qwen2_moe", "qwen3_next",
)  # fmt: skip
"""What else vLLM's classes do differently; transformers and vLLM take seconds to import each."""
KINDS = [*QUICK, *(pytest.param(kind, marks=pytest.mark.long) for kind in SLOW)]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("models"), {}

    def model(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_checkpoint(kind, folder / kind)
        return made[kind]

    return model


@pytest.mark.parametrize("kind", KINDS)
def test_two_halves_are_the_whole_and_read_half(model_of, kind):
    spec = spec_of(model_of(kind))
    layer, everyone = spec.layers[-1], list(range(spec.num_experts))
    batch = batch_of(spec, layer)
    whole, parts = vllm_layers(spec), []
    whole.kernel.load(layer, everyone)
    sums = batch.through(whole.kernel)
    assert sums.norm() > 0
    for held in (everyone[::2], everyone[::-2]):
        half = vllm_layers(spec)
        half.kernel.load(layer, held)
        parts.append(batch.through(half.kernel, held))
        assert half.store.bytes_read == whole.store.bytes_read / 2
    assert difference(sums, parts[0] + parts[1]) < 1e-5


@pytest.mark.parametrize("kind", ["glm4_moe", "granitemoe"])
def test_plain_experts_are_computed_by_our_own_kernel(model_of, kind):
    """The same weights, found and read by vLLM's loader, through two kernels."""
    spec = spec_of(model_of(kind))
    layer, held = spec.layers[0], [5, 2, 11]
    own, theirs = choose_kernel(spec, CPU), vllm_layers(spec).kernel
    assert "vLLM's own layer" not in own.describe()
    batch = batch_of(spec, layer)
    for kernel in (own, theirs):
        kernel.load(layer, held)
    ours = batch.through(own, held)
    assert ours.norm() > 0
    assert difference(ours, batch.through(theirs, held)) < ROUNDING


def test_experts_come_and_go_while_it_serves(model_of):
    spec = spec_of(model_of("olmoe"))
    layer = spec.layers[0]
    layers = vllm_layers(spec)
    batch = batch_of(spec, layer)
    layers.kernel.load(layer, [1, 4])
    of_four = batch.through(layers.kernel, [4])
    under_way = layers.store.layer(layer)
    layers.kernel.load(layer, [4, 9, 3])
    assert torch.equal(batch.through(layers.kernel, [4]), of_four)
    assert under_way.map.experts == (1, 4)
    with pytest.raises(ExpertsMissing, match=r"layer 0 does not hold experts \[1"):
        batch.through(layers.kernel, [1])
    three = layers.kernel.resident_bytes()
    layers.kernel.load(layer, [9])
    assert layers.kernel.resident_bytes() == three / 3
    layers.kernel.load(layer, [])
    assert layers.kernel.resident_bytes() == 0


def test_a_kernel_asked_for_by_name_is_taken(model_of):
    spec = spec_of(model_of("glm4_moe"))
    kernel = choose_kernel(spec, CPU, kernel="vllm_layers")
    assert kernel.describe() == (
        "bf16 experts in vLLM's own layer (UnquantizedFusedMoEMethod) on cpu"
    )
    assert kernel.bytes_per_expert == spec.bytes_per_expert
    assert kernel.resident_bytes() == 0
