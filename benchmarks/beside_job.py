"""What an engine's scheduler gives online requests beside a batch job, in virtual time.

    python -m benchmarks.beside_job [--step-ms 50] [--token-ms 0.33] [--json FILE]

vLLM's own scheduler with ours on top decides; no model runs: a step takes so long, and so much more
for each token in it, as measured on two cores. So the figures hold for the rules alone, and are the
same on a busy machine. Requests have 32 tokens in and 32 out.
"""

import argparse
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.report import Report, Target, run_benchmark

SEQUENCES, TOKENS, BLOCKS = 64, 2048, 20_000
LENGTH = 32
AHEAD = 128
"""Batch requests that an engine has, as the runner keeps it."""
EVERY_S = 0.7
"""Mean time between two online requests."""
WAY_S = 0.05
"""Of an online request from the client to the scheduler and back."""
BEGIN_S, COUNT_S, END_S = 20.0, 30.0, 120.0
"""Online requests begin; the job's tokens count; the end."""
P50_GOAL, P99_GOAL, LEFT_GOAL = 1.25, 1.5, 0.8
ONLINE, BATCH = 0, 100


@dataclass(slots=True)
class Run:
    """first_s: to the first token of online requests. job_tokens_per_s: of the batch job."""

    first_s: list[float] = field(default_factory=list)
    job_tokens_per_s: float = 0.0

    def ms(self, percentile: float) -> float:
        return float(1e3 * (np.percentile(self.first_s, percentile) + WAY_S))


class Play:
    """One scheduler, and requests that come to it."""

    def __init__(self, config: Any, step_s: float, token_s: float) -> None:
        import torch
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from actors.vllm_plugin.scheduler import MeshScheduler

        spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=8, dtype=torch.bfloat16)
        blocks = KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], spec)])
        self._now_s = 0.0
        self._scheduler: Any = MeshScheduler(
            config,
            blocks,
            StructuredOutputManager(config),
            block_size=16,
            clock=lambda: self._now_s,
        )
        self._step_s, self._token_s = step_s, token_s
        self._added = 0

    def run(self, job: bool, online: bool) -> Run:
        run, came, arrivals = Run(), {}, _arrivals()
        next_s = next(arrivals) if online else END_S
        job_tokens = 0
        while self._now_s < END_S:
            while next_s <= self._now_s:
                came[self._add(ONLINE)] = next_s
                next_s = next(arrivals)
            while job and len(self._scheduler.requests) < AHEAD:
                self._add(BATCH)
            if not self._scheduler.requests:
                self._now_s = next_s
                continue
            for name in self._step():
                if name in came:
                    run.first_s.append(self._now_s - came.pop(name))
                job_tokens += name.startswith(str(BATCH)) and self._now_s > COUNT_S
        run.job_tokens_per_s = job_tokens / (END_S - COUNT_S)
        return run

    def _add(self, priority: int) -> str:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        self._added += 1
        name = f"{priority}-{self._added}"
        sampling = SamplingParams(max_tokens=LENGTH, ignore_eos=True)
        request = Request(name, [1] * LENGTH, sampling, None, priority=priority)
        self._scheduler.add_request(request)
        return name

    def _step(self) -> list[str]:
        """Names of the requests that put a token out."""
        from vllm.v1.outputs import ModelRunnerOutput

        scheduled = self._scheduler.schedule()
        names = list(scheduled.num_scheduled_tokens)
        self._now_s += self._step_s + self._token_s * scheduled.total_num_scheduled_tokens
        out = [name for name in names if not self._scheduler.requests[name].is_prefill_chunk]
        index = {name: number for number, name in enumerate(names)}
        tokens = [[7] if name in out else [] for name in names]
        self._scheduler.update_from_output(scheduled, ModelRunnerOutput(names, index, tokens))
        return out


def _arrivals() -> Iterator[float]:
    chance, now_s = random.Random(0), BEGIN_S
    while True:
        yield now_s
        now_s += chance.expovariate(1 / EVERY_S)


def engine_config(folder: Path) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    from tests.checkpoints.make import make_checkpoint

    config = EngineArgs(
        model=str(make_checkpoint("qwen3_moe", folder)),
        scheduling_policy="priority",
        max_num_seqs=SEQUENCES,
        max_num_batched_tokens=TOKENS,
        enable_prefix_caching=False,
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = BLOCKS
    return config


def measure(arguments: argparse.Namespace) -> Report:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    step_s, token_s = arguments.step_ms / 1e3, arguments.token_ms / 1e3
    with tempfile.TemporaryDirectory() as folder:
        config = engine_config(Path(folder) / "model")
        alone, job, both = (
            Play(config, step_s, token_s).run(has_job, online)
            for has_job, online in ((False, True), (True, False), (True, True))
        )
    left = job.job_tokens_per_s - LENGTH / EVERY_S
    rows = [
        {"online": "alone", "ttft_p50_ms": alone.ms(50), "ttft_p99_ms": alone.ms(99)},
        {"online": "beside a job", "ttft_p50_ms": both.ms(50), "ttft_p99_ms": both.ms(99),
         "job_tokens_per_s": both.job_tokens_per_s},
        {"online": "none", "job_tokens_per_s": job.job_tokens_per_s},
    ]  # fmt: skip
    return Report(
        "beside_job",
        rows,
        [
            Target("TTFT p50 beside a job", both.ms(50) / alone.ms(50), P50_GOAL, "max", "x"),
            Target("TTFT p99 beside a job", both.ms(99) / alone.ms(99), P99_GOAL, "max", "x"),
            Target("job, of what is left", both.job_tokens_per_s / left, LEFT_GOAL, "min", "x"),
        ],
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step-ms", type=float, default=50.0, help="of every step")
    parser.add_argument("--token-ms", type=float, default=0.33, help="of each token in it")


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
