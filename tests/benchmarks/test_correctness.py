"""What the correctness benchmark would notice, without engines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.harness.equality import Comparison
from benchmarks.harness.judge import Noise, targets_of
from benchmarks.harness.plain_checkpoint import dequantise
from benchmarks.harness.reference import round_at_random
from benchmarks.harness.sabotage import write_faulty
from tests.checkpoints.make import make_checkpoint

TOKENS = 2000


def noise_of(rng: np.random.Generator) -> tuple[Noise, np.ndarray, np.ndarray]:
    """(noise, fp32 logprobs, how a scale of 1 % shifts them); a rounding shifts them by 0.05."""
    exact = -rng.exponential(2.0, TOKENS)
    direction = rng.normal(0, 0.04, TOKENS)
    answer = {
        "exact": [exact.tolist()],
        "rounded": [[(exact + rng.normal(0, 0.05, TOKENS)).tolist()] for _ in range(3)],
        "scaled": [(exact + direction).tolist()],
    }
    return Noise(answer), exact, direction


def compared(whole: np.ndarray, own: np.ndarray, worst_gap: float = 0.0) -> Comparison:
    delta = np.abs(own - whole)
    return Comparison(
        "mesh", 16, 16, worst_gap, delta.mean(), float(np.median(delta)), delta.max(), own, whole
    )


def missed(noise: Noise, comparison: Comparison) -> list[str]:
    return [t.name.split(": ")[1] for t in targets_of("m", [comparison], noise) if not t.met]


def test_faults_are_told_from_rounding() -> None:
    rng = np.random.default_rng(0)
    noise, exact, direction = noise_of(rng)
    whole = exact + rng.normal(0, 0.05, TOKENS)
    own = whole + rng.normal(0, 0.01, TOKENS)
    assert missed(noise, compared(whole, own)) == []
    assert missed(noise, compared(whole, own + direction)) == ["experts larger by"]
    assert missed(noise, compared(whole, own, worst_gap=0.5)) == ["top-2 gap at a first divergence"]
    wrong = own + np.where(rng.random(TOKENS) < 0.2, rng.normal(0, 1.0, TOKENS), 0.0)
    assert "mean |Δlogprob| to vLLM" in missed(noise, compared(whole, wrong))


def test_a_scale_is_found_beside_routers_that_chose_otherwise() -> None:
    """A few tokens move by a hundred times as much as the others, in the reference as well."""
    rng = np.random.default_rng(2)
    noise, exact, direction = noise_of(rng)
    noise.direction[::100] += rng.normal(0, 4.0, TOKENS // 100)
    own = exact + rng.normal(0, 0.01, TOKENS)
    own[50::100] += rng.normal(0, 4.0, TOKENS // 100)
    assert noise.scale_percent(own - exact) == pytest.approx(0.0, abs=0.05)
    assert noise.scale_percent(own + direction - exact) == pytest.approx(1.0, abs=0.05)


def test_both_engines_wrong_alike_are_told_by_the_reference() -> None:
    rng = np.random.default_rng(1)
    noise, exact, _ = noise_of(rng)
    wrong = exact + rng.normal(0, 0.3, TOKENS)
    assert missed(noise, compared(wrong, wrong)) == ["mean |Δlogprob| to fp32"]


def test_rounding_is_to_a_neighbour_and_fair() -> None:
    random = torch.Generator().manual_seed(0)
    value = 1.0 + 1 / 512  # a quarter of the way from 1 to the next bf16 value
    rounded = round_at_random(torch.full((4000,), value), random)
    assert set(rounded.tolist()) == {1.0, 1.0 + 1 / 128}
    assert rounded.mean().item() == pytest.approx(value, abs=2e-4)


def test_formats_mean_what_their_definitions_say() -> None:
    codes = torch.tensor([[0x21, 0x9F] + [0] * 14], dtype=torch.uint8)  # low code first
    scale = torch.tensor([[128]], dtype=torch.uint8).view(torch.float8_e8m0fnu)
    assert dequantise(codes, scale)[0, :4].tolist() == [1.0, 2.0, -12.0, -1.0]
    weights = torch.ones(130, 129).to(torch.float8_e4m3fn)
    wide = dequantise(weights, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert wide[0, 0] == 1.0
    assert wide[0, 128] == 2.0
    assert wide[129, 0] == 3.0
    assert wide[129, 128] == 4.0


KINDS = ("qwen3_moe", "mixtral", "deepseek_v3", "deepseek_v4_fp8", "deepseek_v4_mxfp4", "gpt_oss")


def differing(one: Path, other: Path) -> list[str]:
    names = []
    for file in one.glob("*.safetensors"):
        before, after = load_file(file), load_file(other / file.name)
        names += [
            name
            for name in before
            if not torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))
        ]
    return names


@pytest.mark.parametrize("kind", KINDS)
def test_sabotage_changes_experts_only(kind: str, tmp_path: Path) -> None:
    model = make_checkpoint(kind, tmp_path / "model")
    wrong = differing(model, write_faulty("wrong_expert", model, tmp_path / "wrong"))
    assert wrong
    assert all("experts." in name and "shared" not in name for name in wrong)
    assert len({name.split("layers.")[1].split(".")[0] for name in wrong}) == 1
    if kind == "deepseek_v4_mxfp4":
        with pytest.raises(ValueError, match="cannot be scaled"):
            write_faulty("scale", model, tmp_path / "scaled")
        return
    scaled = differing(model, write_faulty("scale", model, tmp_path / "scaled"))
    assert scaled
    assert all("experts." in name and "shared" not in name for name in scaled)
