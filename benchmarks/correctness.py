"""Is a mesh the same model? Greedy tokens and probabilities against monolithic vLLM.

  python -m benchmarks.correctness [--quick] [--json FILE] [--models demo,qwen3_moe,...]

The demo model answers 64 held-out prompts of all its domains with 64 tokens each; the tiny
checkpoints (random weights, one per supported architecture and format) answer 16 prompts with 32
tokens. Each is served by one monolithic vLLM engine and by one expert-less engine over several
meshes in turn: 1, 2 and 4 shards, replicas, embedded and router actor, Unix sockets and TCP.
"""

import json
import random
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.harness.equality import NEAR_TIE, Comparison, MeshShape, compare
from benchmarks.harness.local_mesh import ShardShape
from benchmarks.harness.report import Target, finish, parser, show_table
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


def show(model: str, comparisons: list[Comparison], sizes: dict[str, int]) -> None:
    show_table(
        f"{model}: engine parameters {sizes['monolithic']:,} B monolithic, {sizes['mesh']:,} B here",
        ("mesh", "prompts equal", "worst gap at a divergence", "mean |Δlogprob|", "max"),
        [
            (
                c.name,
                f"{c.equal}/{c.prompts}",
                f"{c.worst_gap:.3f}" if c.equal < c.prompts else "-",
                f"{c.mean_delta:.2e}",
                f"{c.max_delta:.2e}",
            )
            for c in comparisons
        ],
    )


def demo_targets(comparisons: list[Comparison]) -> list[Target]:
    """The worst mesh counts."""
    prompts = comparisons[0].prompts
    return [
        Target(
            f"demo: prompts of {prompts} with all {DEMO_TOKENS} tokens equal",
            min(c.equal for c in comparisons),
            prompts * 60 // 64,
            ">=",
            "prompts",
        ),
        Target(
            "demo: top-2 gap at any first divergence",
            max(c.worst_gap for c in comparisons),
            NEAR_TIE,
            "<=",
            "logprob",
        ),
        Target(
            "demo: teacher-forced mean |Δlogprob|",
            max(c.mean_delta for c in comparisons),
            MEAN_DELTA_GOAL,
            "<=",
            "logprob",
        ),
    ]


def main() -> None:
    arguments = parser("Compare meshes with monolithic vLLM.")
    arguments.add_argument("--models", default="", help="comma separated; default: all")
    options = arguments.parse_args()
    meshes = QUICK_MESHES if options.quick else MESHES
    models = options.models.split(",") if options.models else ["demo", *TINY]
    if options.quick and not options.models:
        models = ["demo"]
    runs, targets = [], []
    with tempfile.TemporaryDirectory(prefix="xm-models") as folder:
        for model in models:
            demo = model == "demo"
            request = demo_request(options.quick) if demo else tiny_request(model, Path(folder))
            comparisons, sizes = compare(request, meshes)
            show(model, comparisons, sizes)
            runs += [{"model": model, **asdict(c), "engine_bytes": sizes} for c in comparisons]
            targets += (
                demo_targets(comparisons)
                if demo
                else [
                    Target(
                        f"{model}: teacher-forced mean |Δlogprob|",
                        max(c.mean_delta for c in comparisons),
                        MEAN_DELTA_GOAL,
                        "<=",
                        "logprob",
                    )
                ]
            )
    finish(options, runs, targets)


if __name__ == "__main__":
    main()
