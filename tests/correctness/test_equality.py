"""Every supported architecture and format, served by shards, against monolithic vLLM.

Random weights have near-ties at every other token and in every router, so equality of tokens is
not promised here (`benchmarks/correctness.py` shows it for the trained demo model). What is
promised: the probabilities agree, and most prompts agree to the last token.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from actors.experts.families import read_expert_spec
from benchmarks.correctness import DEMO
from benchmarks.harness.equality import Comparison, MeshShape, compare, compare_weights
from benchmarks.harness.local_mesh import ShardShape
from tests.checkpoints.adapter import FUSED_MODULES, RANK, make_adapter
from tests.checkpoints.aria import IMAGE_ID, make_aria
from tests.checkpoints.deepseek_v3 import make_deepseek_v3
from tests.checkpoints.make import make_checkpoint

pytestmark = pytest.mark.vllm

PROMPTS, TOKENS = 8, 16
# A rounding that tips a router over chooses another expert and shifts one token's probability by a
# lot: the median says how near the arithmetic is, the mean also how often that happens.
MEDIAN_DELTA, MEAN_DELTA = 0.01, 0.06
EQUAL = PROMPTS // 2
LEAST_TAKEN = 0.3
"""Of the drafted tokens; a random draft would be taken once in hundred times."""
MOST_SAVED = 1.1
"""vLLM pads what its kernels want in blocks."""

ONE_OVER_TCP = MeshShape("1 shard, TCP", (ShardShape(),), tcp=True)
MESHES = (
    MeshShape("2 shards, router", (ShardShape(), ShardShape()), "actor"),
    MeshShape("4 unequal shards, replicas", tuple(map(ShardShape, (1.0, 0.7, 0.5, 0.35)))),
)


def request_of(model: Path, **flags: object) -> dict[str, Any]:
    chosen = random.Random(0)
    prompts = [
        [chosen.randrange(10, 250) for _ in range(chosen.randrange(5, 20))] for _ in range(PROMPTS)
    ]
    return {
        "model": str(model),
        "prompts": prompts,
        "max_tokens": TOKENS,
        "flags": {"max_num_seqs": PROMPTS, "max_num_batched_tokens": 512} | flags,
    }


def compare_with_whole(
    model: Path, meshes: Sequence[MeshShape], **flags: object
) -> tuple[list[Comparison], dict[str, int]]:
    return compare(request_of(model, **flags), meshes)


def assert_the_same(comparisons: list[Comparison]) -> None:
    for comparison in comparisons:
        assert comparison.median_delta <= MEDIAN_DELTA, comparison
        assert comparison.mean_delta <= MEAN_DELTA, comparison
        assert comparison.equal >= EQUAL, comparison


def assert_without_experts(model: Path, sizes: dict[str, int]) -> None:
    """The engine is smaller by all routed experts, and by next to nothing else."""
    spec = read_expert_spec(model)
    experts = len(spec.layers) * spec.num_experts * spec.bytes_per_expert
    saved = sizes["monolithic"] - sizes["mesh"]
    assert 0.98 * experts <= saved <= MOST_SAVED * experts, (sizes, experts)


ALWAYS = ("qwen3_moe",)
"""Softmax and bf16. The demo, below, has other scores, hash layers and MXFP4."""
OTHERS = (
    "deepseek_v4_bf16",
    "deepseek_v4_fp8",
    "deepseek_v4_mxfp4",
    "gpt_oss",
)


@pytest.mark.parametrize(
    "kind", [*ALWAYS, *(pytest.param(kind, marks=pytest.mark.long) for kind in OTHERS)]
)
def test_mesh_is_the_same_model(kind: str, tmp_path: Path) -> None:
    model = make_checkpoint(kind, tmp_path / kind)
    comparisons, sizes = compare_with_whole(model, MESHES)
    assert_the_same(comparisons)
    assert_without_experts(model, sizes)


@pytest.mark.long
def test_compiled_engines_are_the_same_model(tmp_path: Path) -> None:
    model = make_checkpoint("qwen3_moe", tmp_path / "model")
    comparisons, _ = compare_with_whole(model, MESHES[1:], enforce_eager=False)
    assert_the_same(comparisons)


@pytest.mark.long
def test_layers_of_multi_token_prediction_are_served_by_shards(tmp_path: Path) -> None:
    """DeepSeek-V3, which drafts two tokens: the mesh's engine takes as many of them."""
    model = make_deepseek_v3(tmp_path / "model", seed=0, predictors=1)
    drafts = {"method": "mtp", "num_speculative_tokens": 2}
    compared = compare_weights(request_of(model, speculative_config=drafts), MESHES)
    assert_the_same(compared.meshes)
    assert_without_experts(model, compared.sizes)
    assert compared.taken["monolithic"] > LEAST_TAKEN
    assert compared.taken["mesh"] == pytest.approx(compared.taken["monolithic"], abs=0.1)


@pytest.mark.long
def test_an_adapter_of_attention_and_drafts_of_n_grams_pass_through(tmp_path: Path) -> None:
    """Mixtral, against monolithic vLLM without drafts and with the adapter merged into weights."""
    model = make_checkpoint("mixtral", tmp_path / "model")
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    make_adapter(model, adapter, merged, seed=1)
    request = request_of(
        model,
        enable_lora=True,
        max_lora_rank=RANK,
        lora_target_modules=FUSED_MODULES,
        speculative_config={
            "method": "ngram", "num_speculative_tokens": 3,
            "prompt_lookup_min": 1, "prompt_lookup_max": 3,
        },
    ) | {"lora": str(adapter)}  # fmt: skip
    compared = compare_weights(request, MESHES, whole_request=request_of(merged))
    assert_the_same(compared.meshes)


@pytest.mark.long
def test_pictures_reach_the_experts(tmp_path: Path) -> None:
    model = make_aria(tmp_path / "model", seed=0)
    request = request_of(model)
    for number, prompt in enumerate(request["prompts"]):
        prompt.insert(3, IMAGE_ID)
        colours = Image.effect_noise((60, 40), 90).point(lambda x, n=number: (x * (n + 1)) % 256)
        colours.convert("RGB").save(tmp_path / f"{number}.png")
    request["pictures"] = [str(tmp_path / f"{number}.png") for number in range(PROMPTS)]
    compared = compare_weights(request, MESHES[1:])
    assert_the_same(compared.meshes)


def test_demo_model_differs_in_near_ties_only() -> None:
    comparisons, sizes = compare_with_whole(DEMO / "checkpoint", (ONE_OVER_TCP, *MESHES))
    for comparison in comparisons:
        assert comparison.only_near_ties, comparison
        assert comparison.mean_delta <= 0.01, comparison
    assert_without_experts(DEMO / "checkpoint", sizes)
