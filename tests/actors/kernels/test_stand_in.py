"""A checkpoint in another format that stands in for the demo's: FP8 in place of MXFP4."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.descriptions import Held
from actors.experts.families import read_expert_spec
from actors.experts.fingerprint import fingerprint
from actors.experts.formats.base import Kind
from actors.experts.formats.fp8_block128 import FP8_BLOCK128
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.refusal import ModelRefused
from actors.experts.variant import check_shapes
from actors.kernels.base import ExpertsMissing
from actors.kernels.choose import choose_kernel
from actors.kernels.stand_in import MOST_LAYERS, check_results, probed_expert, probed_layers
from actors.lean_imports import LEAN_IMPORTS
from actors.shard.shard import ExpertShard, ShardConfig, StandsIn
from tests.checkpoints.formats import quantize_fp8_blocks

DEMO = Path(__file__).parents[3] / "examples" / "demo" / "checkpoint"
TOLERANCE = 0.02
"""MXFP4's values lie on FP8's grid but for blocks of far smaller numbers than their tile's."""
KINDS = (Kind.WEIGHT, Kind.SCALE)
CPU = torch.device("cpu")
Change = Callable[[str, torch.Tensor], torch.Tensor]


def fp8_variant(folder: Path, change: Change = lambda _, values: values) -> Path:
    """The demo's experts alone, in FP8. change: of a weight's values, by its name."""
    folder.mkdir()
    (folder / "config.json").write_bytes((DEMO / "config.json").read_bytes())
    stored = load_file(DEMO / "model.safetensors")
    tensors = {}
    for name, weight in stored.items():
        if ".experts." in name and name.endswith(".weight"):
            scale = stored[name.removesuffix("weight") + "scale"]
            parts = [
                MXFP4.canonical(kind, part)
                for kind, part in zip(KINDS, (weight, scale), strict=True)
            ]
            made = quantize_fp8_blocks(change(name, MXFP4.decode(*parts, torch.float32)))
            tensors[name] = made.data
            tensors[name.removesuffix("weight") + "scale"] = made.scale
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fp8_variant(tmp_path_factory.mktemp("variant") / "fp8")


def compared(path: Path, tolerance: float = TOLERANCE, who: str = "a-0") -> float:
    spec = read_expert_spec(path)
    return check_results(choose_kernel(spec, CPU), spec, read_expert_spec(DEMO), tolerance, who)


def test_the_same_weights_in_another_format_are_taken(variant: Path) -> None:
    spec = read_expert_spec(variant)
    assert spec.weight_format == FP8_BLOCK128
    check_shapes(spec, read_expert_spec(DEMO))
    assert 0 < compared(variant) < TOLERANCE


def test_a_tolerance_that_is_too_narrow_is_told(variant: Path) -> None:
    with pytest.raises(ModelRefused, match="the pool's checkpoint_tolerance is 1e-06"):
        compared(variant, 1e-6)


def test_the_kernel_holds_nothing_afterwards(variant: Path) -> None:
    spec = read_expert_spec(variant)
    kernel = choose_kernel(spec, CPU)
    check_results(kernel, spec, read_expert_spec(DEMO), TOLERANCE, "a-0")
    one = torch.zeros(1, dtype=torch.int32)
    for layer in spec.layers:
        for expert in range(spec.num_experts):
            with pytest.raises(ExpertsMissing):
                kernel.compute(
                    layer, torch.ones(1, 256).bfloat16(), one, one + expert, torch.ones(1)
                )
    assert kernel.resident_bytes() == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda name, values: values.flip(0) if ".w2." in name else values,
        lambda name, values: values * 1.1 if ".w1." in name else values,
        lambda name, values: values * 0 if name.startswith("layers.3") else values,
        lambda _, values: values + values.std() * torch.randn(values.shape) * 0.1,
    ],
    ids=["rows in another order", "wrong scales", "a layer of zeros", "another training"],
)
def test_a_damaged_variant_is_refused(tmp_path: Path, damage: Change) -> None:
    with pytest.raises(ModelRefused) as refused:
        compared(fp8_variant(tmp_path / "fp8", damage))
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / 'fp8'} does not stand in for {DEMO}: probe rows through")
    assert "\n" not in said


def test_results_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = fp8_variant(tmp_path / "fp8")
    tensors = load_file(path / "model.safetensors")
    for name in tensors:
        if name.endswith(".scale"):
            tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ModelRefused, match="come out nan apart"):
        compared(path)


def test_one_damaged_expert_is_found_by_the_shards_that_look_at_it(tmp_path: Path) -> None:
    path = fp8_variant(
        tmp_path / "fp8",
        lambda name, values: -values if name.startswith("layers.1.ffn.experts.9.w2") else values,
    )
    looking = [f"a-{n}" for n in range(1000) if probed_expert(f"a-{n}", 1, 64) == 9]
    assert 4 < len(looking) < 40
    with pytest.raises(ModelRefused, match="expert 9 of layer 1 come out 2 apart"):
        compared(path, who=looking[0])


def test_another_model_is_refused(variant: Path) -> None:
    spec = read_expert_spec(variant)
    with pytest.raises(ModelRefused, match="its top_k is 5, not 6"):
        check_shapes(replace(spec, top_k=5), read_expert_spec(DEMO))


def test_many_layers_are_looked_at_from_first_to_last() -> None:
    assert probed_layers((0, 1, 2)) == (0, 1, 2)
    chosen = probed_layers(tuple(range(3, 64)))
    assert len(set(chosen)) == MOST_LAYERS
    assert (chosen[0], chosen[-1]) == (3, 63)


def shard_of(path: Path, folder: Path, tolerance: float = TOLERANCE) -> ExpertShard:
    config = ShardConfig(
        "a-0", "a", str(path), "cpu", 1, (f"unix:{folder}/sockets/a",),
        stands_in=StandsIn(str(DEMO), tolerance),
    )  # fmt: skip
    return ExpertShard(config, b"secret")


def test_a_shard_is_one_of_the_base_to_whoever_asks(tmp_path: Path, variant: Path) -> None:
    shard = shard_of(variant, tmp_path)
    said = shard.start()
    try:
        assert said.fingerprint == fingerprint(DEMO)
        assert said.variant == fingerprint(variant) != said.fingerprint
        assert said.bytes_per_expert == read_expert_spec(variant).bytes_per_expert
        assert said.held == Held(0, (0, 0), frozenset(), frozenset(), "")
        assert ", stands in within 0.0" in said.detail
    finally:
        shard.stop()


STARTED = """
import sys
from actors.shard.shard import ExpertShard, ShardConfig, StandsIn
variant, base, listen = sys.argv[1:]
shard = ExpertShard(
    ShardConfig("a-0", "a", variant, "cpu", 1, (listen,), stands_in=StandsIn(base, 0.02)), b"s"
)
print(shard.start().detail)
shard.stop()
"""


def test_a_process_that_imports_little_of_torch_compares_too(tmp_path: Path, variant: Path) -> None:
    """As the actors of a mesh do."""
    done = subprocess.run(
        [sys.executable, "-c", STARTED, str(variant), str(DEMO), f"unix:{tmp_path}/sockets/a"],
        env={**os.environ, **LEAN_IMPORTS}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert "stands in within 0.0" in done.stdout, done.stderr


def test_a_shard_that_does_not_stand_in_does_not_start(tmp_path: Path, variant: Path) -> None:
    shard = shard_of(variant, tmp_path, 1e-6)
    with pytest.raises(ModelRefused, match="does not stand in"):
        shard.start()
    shard.stop()
    config = json.loads((variant / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").symlink_to(variant / "model.safetensors")
    (other / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": 4}))
    with pytest.raises(ModelRefused, match="its top_k is 4, not 6"):
        shard_of(other, tmp_path).start()
