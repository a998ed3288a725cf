"""Is a mesh the same model? Greedy tokens and probabilities against monolithic vLLM.

  python -m benchmarks.correctness [--quick] [--json FILE] [--models demo,qwen3_moe,...]

The demo model answers 64 held-out prompts of all its domains with 64 tokens each; the tiny
checkpoints (random weights, one per supported architecture and format) answer 16 prompts with 32
tokens. Each is served by one monolithic vLLM engine and by one expert-less engine over several
meshes in turn: 1, 2 and 4 shards, replicas, embedded and router actor, Unix sockets and TCP. The
last mesh codes rows in FP8 on their way, which is not exact: its figures are shown, not judged.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

from actors.wire.frame import RowCoding
from benchmarks.harness.equality import NEAR_TIE, Comparison, MeshShape, compare
from benchmarks.harness.local_mesh import ShardShape
from benchmarks.harness.report import Report, Target, run_benchmark
from tests.checkpoints.make import make_checkpoint

DEMO = Path(__file__).parents[1] / "examples" / "demo"
TINY = (
    "qwen3_moe",
    "mixtral",
    "deepseek_v3",
    "deepseek_v4_bf16",
    "deepseek_v4_fp8",
    "deepseek_v4_mxfp4",
    "gpt_oss",
)
DEMO_TOKENS, TINY_TOKENS = 64, 32
TINY_PROMPTS = 16
MEAN_DELTA_GOAL = 0.01
# Speeds of the demo's emulated pools; memory for every expert, so every expert has four replicas.
UNEQUAL = tuple(ShardShape(speed) for speed in (1.0, 0.7, 0.5, 0.35))

MESHES = (
    MeshShape("1 shard, embedded", (ShardShape(),)),
    MeshShape("2 shards, embedded", (ShardShape(), ShardShape())),
    MeshShape("4 shards, embedded, replicas", UNEQUAL),
    MeshShape("1 shard, router actor", (ShardShape(),), "actor"),
    MeshShape("2 shards, router actor", (ShardShape(), ShardShape()), "actor"),
    MeshShape("4 shards, router actor, replicas", UNEQUAL, "actor"),
    MeshShape("2 shards, embedded, TCP", (ShardShape(), ShardShape()), tcp=True),
    MeshShape(
        "2 shards, embedded, TCP, FP8 rows",
        (ShardShape(), ShardShape()),
        tcp=True,
        rows=RowCoding.FP8,
    ),
)
QUICK_MESHES = (MESHES[2], MESHES[4])


def demo_request(quick: bool) -> dict[str, object]:
    from transformers import AutoTokenizer

    checkpoint = str(DEMO / "checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    lines = (DEMO / "prompts.jsonl").read_text().splitlines()
    prompts = [tokenizer.encode(json.loads(line)["prompt"]) for line in lines]
    return {
        "model": checkpoint,
        "prompts": prompts[::4] if quick else prompts,
        "max_tokens": DEMO_TOKENS,
        "flags": {"max_num_seqs": 32},
    }


def tiny_request(kind: str, folder: Path) -> dict[str, object]:
    chosen = random.Random(0)
    prompts = [
        [chosen.randrange(10, 250) for _ in range(chosen.randrange(5, 20))]
        for _ in range(TINY_PROMPTS)
    ]
    return {
        "model": str(make_checkpoint(kind, folder / kind)),
        "prompts": prompts,
        "max_tokens": TINY_TOKENS,
        "flags": {"max_num_seqs": TINY_PROMPTS},
    }


def row(model: str, comparison: Comparison, sizes: dict[str, int]) -> dict[str, object]:
    return {
        "model": model,
        "mesh": comparison.name,
        "prompts_equal": f"{comparison.equal}/{comparison.prompts}",
        "worst_gap": comparison.worst_gap,
        "mean_delta": comparison.mean_delta,
        "median_delta": comparison.median_delta,
        "max_delta": comparison.max_delta,
        "engine_bytes": sizes["mesh"],
        "whole_bytes": sizes["monolithic"],
    }


def targets_of(model: str, comparisons: list[Comparison]) -> list[Target]:
    """The worst mesh counts. Equal tokens are promised for the trained model only: random weights
    have near-ties everywhere."""
    worst = max(c.mean_delta for c in comparisons)
    delta = Target(f"{model}: mean |Δlogprob|, forced", worst, MEAN_DELTA_GOAL, "max", "nats")
    if model != "demo":
        return [delta]
    prompts = comparisons[0].prompts
    equal = min(c.equal for c in comparisons)
    gap = max(c.worst_gap for c in comparisons)
    return [
        Target(f"demo: equal of {prompts} prompts", equal, prompts * 60 // 64, "min", "prompts"),
        Target("demo: top-2 gap at a first divergence", gap, NEAR_TIE, "max", "nats"),
        delta,
    ]


def measure(arguments: argparse.Namespace) -> Report:
    meshes = QUICK_MESHES if arguments.quick else MESHES
    everything = ["demo"] if arguments.quick else ["demo", *TINY]
    models = arguments.models.split(",") if arguments.models else everything
    runs, targets = [], []
    with tempfile.TemporaryDirectory(prefix="xm-models") as folder:
        for model in models:
            is_demo = model == "demo"
            request = (
                demo_request(arguments.quick) if is_demo else tiny_request(model, Path(folder))
            )
            comparisons, sizes = compare(request, meshes)
            runs += [row(model, comparison, sizes) for comparison in comparisons]
            exact = [
                comparison
                for comparison, mesh in zip(comparisons, meshes, strict=True)
                if mesh.rows is RowCoding.BF16
            ]
            targets += targets_of(model, exact)
    notes = ("worst_gap: largest top-2 logprob gap where greedy decoding first took another token",)
    return Report("correctness", runs, targets, notes)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", default="", help="comma separated; default: all")


if __name__ == "__main__":
    run_benchmark("Compare meshes with monolithic vLLM.", measure, options)
