"""An engine on several devices: each rank sends its own rows, and the sum comes out once."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.harness.equality import MeshShape, compare, compare_runs, run_engine
from benchmarks.harness.local_mesh import LocalMesh, ShardShape
from tests.checkpoints.make import make_checkpoint

pytestmark = [pytest.mark.vllm, pytest.mark.long]

TOKENS = 16
SHARDS = (ShardShape(), ShardShape())
FLAGS = {"max_num_seqs": 4, "max_num_batched_tokens": 512}
# Three rows in a decoding step, which two ranks cannot share evenly, and lengths that differ.
PROMPTS = [[7 * i % 240 + 10 for i in range(length)] for length in (5, 12, 19)]
# Random weights have near-ties everywhere, in routers too, so roundings shift some logprobs.
MEDIAN_DELTA, MEAN_DELTA = 0.015, 0.06
# Two ranks round attention's parts before they add them up: seen 0.03 and 0.05. Sums that are there
# twice give 0.8 and 1.8.
OTHER_ROUNDING = 4


def request_of(model: Path, ranks: int, forced_file: Path | None = None) -> dict[str, object]:
    return {
        "model": str(model),
        "prompts": PROMPTS,
        "max_tokens": TOKENS,
        "forced_file": forced_file and str(forced_file),
        "flags": FLAGS | {"tensor_parallel_size": ranks},
    }


def test_two_ranks_answer_like_one(tmp_path: Path) -> None:
    model = make_checkpoint("qwen3_moe", tmp_path / "model")
    forced_file = tmp_path / "forced.json"
    chosen = random.Random(0)
    forced_file.write_text(json.dumps([[chosen.randrange(10, 250) for _ in range(40)]] * 4))
    with LocalMesh(model, tmp_path / "m") as mesh, ThreadPoolExecutor(2) as engines:
        mesh.serve(SHARDS)
        one, two = engines.map(
            lambda ranks: run_engine(
                request_of(model, ranks, forced_file), mesh.address, {"run": lambda: None}
            ),
            (1, 2),
        )
    comparison = compare_runs("two ranks", one["runs"]["run"], two["runs"]["run"])
    assert comparison.median_delta <= OTHER_ROUNDING * MEDIAN_DELTA, comparison
    assert comparison.mean_delta <= OTHER_ROUNDING * MEAN_DELTA, comparison
    assert comparison.equal >= len(PROMPTS) - 1, comparison


def test_two_ranks_with_shared_experts_answer_like_monolithic_vllm_on_two_ranks(
    tmp_path: Path,
) -> None:
    # vLLM's DeepSeek-V3 on two CPU ranks is another model than on one (0.12 nats in the median),
    # also without a mesh.
    model = make_checkpoint("deepseek_v3", tmp_path / "model")
    (comparison,), _ = compare(request_of(model, 2), (MeshShape("2 shards", SHARDS),))
    # The mean says little: a near-tie of a random router that tips moves it by more than all else.
    assert comparison.median_delta <= MEDIAN_DELTA, comparison
