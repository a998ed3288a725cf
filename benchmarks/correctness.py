"""Is a mesh the same model? Greedy tokens and probabilities against monolithic vLLM and fp32.

  python -m benchmarks.correctness [--quick] [--json FILE] [--models demo,qwen3_moe,...]
  python -m benchmarks.correctness --sabotage wrong_expert|scale

The demo model answers 64 held-out prompts of all its domains with 64 tokens each; the tiny
checkpoints (random weights, one per supported architecture and format) answer 16 prompts with 32
tokens. Each is served by one monolithic vLLM engine and by one expert-less engine over several
meshes in turn: 1, 2 and 4 shards, replicas, embedded and router actor, Unix sockets and TCP. The
last mesh codes rows in FP8 on their way, which is not exact: its figures are shown, not judged.

All are held against transformers in fp32, which shares no code with shards or vLLM and says how far
roundings may shift each model (`benchmarks.harness.judge`). With `--sabotage` the shards load
faulty weights, and the benchmark has to fail.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from actors.wire.frame import RowCoding
from benchmarks.harness.equality import Comparison, MeshShape, compare_weights
from benchmarks.harness.judge import Noise, targets_of
from benchmarks.harness.local_mesh import ShardShape
from benchmarks.harness.plain_checkpoint import is_quantised, write_plain
from benchmarks.harness.report import Report, Target, run_benchmark
from benchmarks.harness.sabotage import FAULTS, write_faulty
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
LEAST_EQUAL = 60 / 64
"""Of the demo's prompts: random weights have near-ties everywhere, trained ones have few."""
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
QUICK_MODELS = ("demo", "qwen3_moe")


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


def row(
    model: str, comparison: Comparison, sizes: dict[str, int], noise: Noise
) -> dict[str, object]:
    return {
        "model": model,
        "mesh": comparison.name,
        "prompts_equal": f"{comparison.equal}/{comparison.prompts}",
        "worst_gap": comparison.worst_gap,
        "mean_delta": comparison.mean_delta,
        "median_delta": comparison.median_delta,
        "max_delta": comparison.max_delta,
        "to_fp32": float(np.abs(comparison.own - noise.exact).mean()),
        "vllm_to_fp32": float(np.abs(comparison.whole - noise.exact).mean()),
        "rounding": noise.mean,
        "scale_%": noise.scale_percent(comparison.own - comparison.whole),
        "engine_bytes": sizes["mesh"],
        "whole_bytes": sizes["monolithic"],
    }


def score_reference(model: Path, sequences: list[list[int]], folder: Path) -> Noise:
    """`benchmarks.harness.reference` in a process of its own."""
    if is_quantised(model):
        model = write_plain(model, folder / f"{model.name}-fp32")
    asked, answered = folder / "asked.json", folder / "answered.json"
    asked.write_text(json.dumps({"model": str(model), "sequences": sequences}))
    subprocess.run(
        [sys.executable, "-m", "benchmarks.harness.reference", str(asked), str(answered)],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return Noise(json.loads(answered.read_text()))


def measure(arguments: argparse.Namespace) -> Report:
    meshes = QUICK_MESHES if arguments.quick else MESHES
    everything = QUICK_MODELS if arguments.quick else ("demo", *TINY)
    models = arguments.models.split(",") if arguments.models else everything
    runs: list[dict[str, object]] = []
    targets: list[Target] = []
    with tempfile.TemporaryDirectory(prefix="xm-models") as name:
        folder = Path(name)
        for model in models:
            is_demo = model == "demo"
            request = demo_request(arguments.quick) if is_demo else tiny_request(model, folder)
            checkpoint, weights = Path(str(request["model"])), None
            if arguments.sabotage:
                weights = write_faulty(arguments.sabotage, checkpoint, folder / f"{model}-faulty")
            compared = compare_weights(request, meshes, weights)
            noise = score_reference(checkpoint, compared.sequences, folder)
            runs += [row(model, mesh, compared.sizes, noise) for mesh in compared.meshes]
            exact = [
                comparison
                for comparison, mesh in zip(compared.meshes, meshes, strict=True)
                if mesh.rows is RowCoding.BF16
            ]
            targets += targets_of(model, exact, noise)
            if is_demo:
                equal, prompts = min(mesh.equal for mesh in exact), exact[0].prompts
                least = int(prompts * LEAST_EQUAL)
                targets.append(
                    Target(f"demo: equal of {prompts} prompts", equal, least, "min", "prompts")
                )
    notes = (
        "worst_gap: largest top-2 logprob gap where greedy decoding first took another token",
        "deltas: |Δlogprob| of forced tokens to vLLM; to_fp32: mean to transformers in fp32; "
        "rounding: what rounding the output of every module to bf16 shifts that by",
    )
    return Report("correctness", runs, targets, notes)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", default="", help="comma separated; default: all")
    parser.add_argument("--sabotage", choices=list(FAULTS), help="give shards faulty weights")


if __name__ == "__main__":
    run_benchmark("Compare meshes with monolithic vLLM.", measure, options)
