"""A long prompt, prefilled part by part: memory of engine and shards, and equality.

  python -m benchmarks.long_prompt [--tokens N] [--json FILE]

One random prompt for a tiny Qwen3-MoE goes to an engine without experts and two shards, and then to
monolithic vLLM. (On CPUs without AMX vLLM 0.32 computes prompts of DeepSeek-V3 and V4 in one part.)
After some of the parts anonymous memory is read: shards should stay as they are, and the engine
should grow as monolithic vLLM does. What is compared is the logprob of every token of the prompt,
and the tokens that follow it. The same between monolithic vLLM and itself with parts of half the
size shows what rounding alone comes to over so many positions.

Attention takes time that grows with the square of a prompt: seconds of the first and of the last
parts are shown.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.dispatch.subscription import ADDRESS_VARIABLE, SECRET_VARIABLE
from actors.process import thread_environment
from benchmarks.harness.generate import ENVIRONMENT
from benchmarks.harness.local_mesh import SECRET, LocalMesh, ShardShape
from benchmarks.harness.report import Report, Target, run_benchmark
from tests.checkpoints.make import make_checkpoint
from tests.checkpoints.writer import write_json

TOKENS, QUICK_TOKENS = 131_072, 4_096
MOST_PART, LOOKS, NEW_TOKENS = 2_048, 8, 16
VOCABULARY = (10, 250)
SHARD_GROWTH_GOAL_MB = 8.0
"""From the first quarter of a prompt to its end. A row takes 256 bytes: all rows of 128K tokens
would be 34 MB."""
ENGINE_GROWTH_GOAL_MB = 16.0
"""Beside what monolithic vLLM grows by, which has the same KV cache."""
MEDIAN_DELTA, MEAN_DELTA = 0.01, 0.06
"""As in `tests/correctness`."""

Json = dict[str, Any]


def make_model(folder: Path, positions: int) -> Path:
    model = make_checkpoint("qwen3_moe", folder)
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", config | {"max_position_embeddings": positions})
    return model


def run_engine(request: Json, folder: Path, address: str | None) -> Json:
    """The answer of `benchmarks.harness.prefill_process`.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    asked, answered, said = (folder / name for name in ("asked.json", "answered.json", "said"))
    asked.write_text(json.dumps(request))
    variables = ENVIRONMENT | thread_environment(1) | {"TMPDIR": str(folder)}
    if address:
        variables |= {ADDRESS_VARIABLE: address, SECRET_VARIABLE: SECRET.decode()}
    with said.open("w") as log:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.harness.prefill_process", asked, answered],
            env=os.environ | variables,
            stdout=log,
            stderr=log,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"the engine failed:\n{said.read_text()[-6000:]}")
    answer: Json = json.loads(answered.read_text())
    return answer


def rows_of(name: str, answer: Json) -> list[Json]:
    return [
        {
            "engine": name, "prompt_tokens": part["tokens"],
            "engine_mb": part["engine_mb"], "shards_mb": max(part["shards_mb"], default=0.0),
        }
        for part in answer["parts"]
    ]  # fmt: skip


def times_of(name: str, answer: Json, part: int) -> Json:
    """ms per token in the first parts, but the very first, and in the last ones."""
    seconds = np.array(answer["seconds"][1:]) * 1e3 / part
    some = max(1, len(seconds) // 8)
    return {
        "times of": name, "whole_prompt_s": sum(answer["seconds"]),
        "first_ms_per_token": float(seconds[:some].mean()),
        "last_ms_per_token": float(seconds[-some - 1 : -1].mean()),
    }  # fmt: skip


def grown(answer: Json, size: str) -> float:
    """Megabytes from the look after a quarter of the prompt to the last."""
    parts = answer["parts"]
    first, last = (np.max(parts[at][size], initial=0.0) for at in (LOOKS // 4 - 1, -1))
    return float(last - first)


def differences(one: Json, other: Json) -> NDArray[np.float64]:
    """[tokens - 1] |difference of logprob| of the prompt's tokens, in nats."""
    return np.abs(np.array(one["prompt_logprobs"]) - np.array(other["prompt_logprobs"]))


def apart(name: str, one: Json, other: Json) -> Json:
    delta = differences(one, other)
    return {
        "differences of": name, "median_nats": float(np.median(delta)),
        "mean_nats": float(delta.mean()), "equal_tokens": sum(
            a == b for a, b in zip(one["tokens"], other["tokens"], strict=True)
        ),
    }  # fmt: skip


def targets_of(own: Json, whole: Json) -> list[Target]:
    delta = differences(own, whole)
    parted = [gap for a, b, gap in zip(own["tokens"], whole["tokens"], whole["gaps"], strict=True)
              if a != b][:1]  # fmt: skip
    engine = grown(own, "engine_mb") - grown(whole, "engine_mb")
    return [
        Target("a shard grows by", grown(own, "shards_mb"), SHARD_GROWTH_GOAL_MB, "max", "MB"),
        Target("the engine grows by more than vLLM", engine, ENGINE_GROWTH_GOAL_MB, "max", "MB"),
        Target("median difference of logprobs", float(np.median(delta)), MEDIAN_DELTA,
               "max", "nats"),
        Target("mean difference of logprobs", float(delta.mean()), MEAN_DELTA, "max",
               "nats"),
        Target("top-2 gap where the answers part", max(parted, default=0.0), 0.5, "max",
               "nats"),
    ]  # fmt: skip


def measure(arguments: argparse.Namespace) -> Report:
    tokens = arguments.tokens or (QUICK_TOKENS if arguments.quick else TOKENS)
    part = min(MOST_PART, tokens // LOOKS)
    drawn = np.random.default_rng(0).integers(*VOCABULARY, tokens)
    with tempfile.TemporaryDirectory(prefix="xm") as name:
        folder = Path(name)
        request = {
            "model": str(make_model(folder / "model", tokens + NEW_TOKENS)),
            "prompt": drawn.tolist(), "part": part, "new_tokens": NEW_TOKENS, "looks": LOOKS,
            "shards": [],
        }  # fmt: skip
        with LocalMesh(Path(request["model"]), folder / "mesh") as mesh:
            mesh.serve([ShardShape(), ShardShape()])
            own = run_engine(request | {"shards": mesh.pids}, folder, mesh.address)
        whole = run_engine(request, folder, None)
        halved = run_engine(request | {"part": part // 2}, folder, None)
    runs = [
        *rows_of("mesh", own), *rows_of("vLLM", whole),
        times_of("mesh", own, part), times_of("vLLM", whole, part),
        apart("mesh and vLLM", own, whole), apart("vLLM and itself", halved, whole),
    ]  # fmt: skip
    return Report("long prompt", runs, targets_of(own, whole), (f"parts of {part} tokens",))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, help=f"of the prompt; {TOKENS} if not given")


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
