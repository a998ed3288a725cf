"""How many engines to how many shards: predicted tokens a second beside measured ones.

Engines are real (mid-size model, eager, one thread each). Shards are *emulated*: behind the real
server, links and dispatcher they sleep for what a device of the given cost would compute, so that
two cores can tell one shard from three. The engine's own times are fitted to steps over shards that
take no time; then a stream of requests of random lengths, so many always under way, is generated
over 1 to 3 shards and predicted by `placement.workload` from those times and the shards' costs.

  tokens_per_s   measured, of the middle half of the tokens
  predicted      from the formulas; simulated: the same pipeline played call by call
  x, predicted_x of the first setting's tokens a second
"""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from actors.process import SHORT_SPIN
from benchmarks.harness.priority import undisturbed
from benchmarks.harness.report import Report, Target, run_benchmark
from benchmarks.harness.sleeping_mesh import SleepingMesh
from benchmarks.harness.timed_engine import Stream, TimedEngine, Timing, Workload
from benchmarks.throughput import make_model
from placement.cost_model import DeviceCost
from placement.workload.lengths import geometric, lognormal, recorded
from placement.workload.pipeline import Flow, Pipeline, flow
from placement.workload.service import EngineCost, ExpertSide
from placement.workload.simulate import simulated_tokens_per_s

COST = DeviceCost(call_s=1e-3, read_s=2e-4, row_s=4e-5)
"""Of each emulated shard: weak enough that one of them sets the pace of one engine."""
FREE = DeviceCost(0.0, 0.0, 1e-12)
AT_ONCE, STEP_TOKENS = 16, 2048
PROMPT, OUTPUT, SPREAD = 32.0, 24.0, 0.6
REQUESTS, QUICK_REQUESTS = 64, 40
SHARDS = (1, 2, 3)
FITTED = (Workload(4, 32, 24), Workload(16, 32, 24), Workload(32, 32, 24), Workload(16, 100, 24))
"""Steps that an engine's own times are fitted to."""
OFF = 0.15
"""By which a predicted ratio may differ from a measured one."""


def fitted(engine: TimedEngine) -> EngineCost:
    """Least squares of relative errors over decoding steps and steps of prompts alone."""
    engine.run(Workload(32, 32, 4), seed=99)
    calls, took = [], []
    for seed, work in enumerate(FITTED):
        timing = engine.run(work, seed)
        context = work.batch * (work.prompt_tokens + work.new_tokens / 2)
        calls.append([1.0, work.batch, 0.0, context])
        took.append(float(np.median(timing.gaps_s)))
        calls.append([1.0, 0.0, work.batch * work.prompt_tokens, 0.0])
        took.append(min(timing.first_s))
    from scipy.optimize import nnls

    relative = np.array(calls) / np.array(took)[:, None]
    found, _ = nnls(relative, np.ones(len(took)))
    return EngineCost(*map(float, found))


def stream(requests: int, seed: int) -> Stream:
    rng = np.random.default_rng(seed)
    prompt = rng.choice(lognormal(PROMPT, SPREAD), requests)
    output = rng.choice(geometric(OUTPUT), requests)
    return Stream(tuple(map(int, prompt)), tuple(map(int, output)), AT_ONCE)


def steady_tokens_per_s(timings: Sequence[Timing]) -> float:
    """Of the middle half of all tokens, when every engine is full."""
    came = np.sort(np.concatenate([timing.came_s for timing in timings]))
    first, last = len(came) // 4, 3 * len(came) // 4
    return float((last - first) / (came[last] - came[first]))


def generate(engines: Sequence[TimedEngine], streams: Sequence[Stream]) -> float:
    for number, (engine, one) in enumerate(zip(engines, streams, strict=True)):
        engine.start(one, seed=number)
    return steady_tokens_per_s([engine.finish() for engine in engines])


def predict(
    streams: Sequence[Stream], cost: EngineCost, side: ExpertSide, engines: int, shards: int
) -> tuple[Flow, float]:
    lengths = recorded(
        [tokens for one in streams for tokens in one.prompt_tokens],
        [tokens for one in streams for tokens in one.new_tokens],
    )
    given = Pipeline(lengths, cost, side, engines, shards, AT_ONCE, STEP_TOKENS)
    return flow(given), simulated_tokens_per_s(given)


def measure(arguments: argparse.Namespace) -> Report:
    requests = QUICK_REQUESTS if arguments.quick else REQUESTS
    most = 1 if arguments.quick else 2
    runs: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xw")))
        model = make_model(folder / "model")
        mesh = stack.enter_context(SleepingMesh(model, folder / "mesh"))
        mesh.serve([FREE])
        engines = [
            stack.enter_context(
                closing(TimedEngine(model, 1, mesh.address, more=SHORT_SPIN))
            ).wait_ready()
            for _ in range(most)
        ]
        spec = mesh.spec
        side = ExpertSide(len(spec.layers), spec.num_experts, spec.top_k, spec.hidden_size, COST)
        streams = [stream(requests, seed) for seed in range(most)]
        pids = [engine.pid for engine in engines]
        with undisturbed(pids + mesh.pids, arguments.realtime):
            cost = fitted(engines[0])
        for shards in SHARDS:
            mesh.serve([COST] * shards)
            for count in range(1, most + 1):
                with undisturbed(pids + mesh.pids, arguments.realtime):
                    measured = generate(engines[:count], streams[:count])
                found, played = predict(streams[:count], cost, side, count, shards)
                runs.append(row(found, played, measured))
                print(".", end="", flush=True)
    return report(sorted(runs, key=lambda run: (run["engines"], run["shards"])), cost)


def row(found: Flow, played: float, measured: float) -> dict[str, Any]:
    return {
        "engines": found.engines,
        "shards": found.shards,
        "shards_are": "emulated",
        "pace": found.limit,
        "shard_busy": found.shard_busy,
        "tokens_per_s": measured,
        "predicted": found.tokens_per_s,
        "simulated": played,
        "predicted/measured": found.tokens_per_s / measured,
    }


def report(runs: list[dict[str, Any]], cost: EngineCost) -> Report:
    first = runs[0]
    targets = []
    for run in runs:
        run["x"] = run["tokens_per_s"] / first["tokens_per_s"]
        run["predicted_x"] = run["predicted"] / first["predicted"]
        if run is not first:
            off = abs(run["predicted_x"] / run["x"] - 1)
            name = f"{run['engines']} to {run['shards']} against 1 to 1: ratio off by"
            targets.append(Target(name, off, OFF, "max", "", timed=True))
    note = (
        f"engine: step_us {cost.step_s * 1e6:.0f}, row_us {cost.row_s * 1e6:.0f}, prompt_row_us "
        f"{cost.prompt_row_s * 1e6:.0f}, context_ns {cost.context_s * 1e9:.0f}"
    )
    return Report("workload", runs, targets, [note])


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure)
