"""Four unlike devices on four nodes: what is predicted, what calls take, what speeds are worth.

The nodes are network namespaces (root and iproute2) that share no memory: rows go over TCP. The
devices are *emulated*: each shard sleeps for what a device of speed 1.0, 0.6, 0.5 or 0.15 and of
different memory would compute, behind the real server, links, dispatcher and planner. One layer of
64 experts, top-6, 256 tokens a call, experts' load lognormal.

  predicted_ms  mean over the calls' batches of the slowest device, as the dispatcher splits them
  bound_ms      all devices busy until the end, each expert read once, whatever holds which
  blind         the same memory, planned and dispatched as if all devices were alike
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from actors.dispatch.dispatcher import Dispatcher
from actors.dispatch.mesh_view import MeshView, Peer, ViewVersion
from actors.dispatch.routing_table import routing_table
from actors.dispatch.split import Split
from actors.dispatch.view_source import FixedView
from actors.wire.address import parse_address
from benchmarks.harness.emulated_shard import SECRET, EmulatedShard
from benchmarks.harness.report import Report, Target, run_benchmark
from placement.cost_model import DeviceCost, cost_table, expected_reads, planner_speed
from placement.epoch import PlanEpoch
from placement.planner import plan_placement
from placement.types import Placement
from tests.nodes.network import Network, Node, why_not

SPEEDS = (1.0, 0.6, 0.5, 0.15)
SLOTS = (40, 32, 24, 16)
"""Experts each device has memory for, of 64."""
EXPERTS, TOP_K, TOKENS, HIDDEN = 64, 6, 256, 256
FASTEST = DeviceCost(call_s=4e-3, read_s=4e-4, row_s=1e-4)
"""Of speed 1.0; calls of the mesh take some 90 ms, beside which this machine's load is small."""
SPREAD = 0.8
CALLS, QUICK_CALLS = 200, 40
WARM_CALLS = 5

Floats = npt.NDArray[np.float64]
COSTS = tuple(FASTEST.scaled(speed) for speed in SPEEDS)


def popularity() -> Floats:
    """[E], of sum 1."""
    drawn = np.random.default_rng(1).lognormal(0.0, SPREAD, EXPERTS)
    return drawn / drawn.sum()


def batches(count: int) -> list[npt.NDArray[np.int32]]:
    """[T, K] distinct experts of each token, by popularity."""
    rng = np.random.default_rng(2)
    chance = np.log(popularity())
    return [
        np.argsort(-(chance + rng.gumbel(size=(TOKENS, EXPERTS))), axis=1)[:, :TOP_K].astype(
            np.int32
        )
        for _ in range(count)
    ]


def load_of(some: Sequence[npt.NDArray[np.int32]]) -> Floats:
    """[1, E] rows of a call."""
    return np.mean([np.bincount(ids.ravel(), minlength=EXPERTS) for ids in some], axis=0)[None]


def planned(load: Floats, costs: Sequence[DeviceCost]) -> Placement:
    speed, offset = planner_speed(costs, 1.0, expected_reads(EXPERTS, TOKENS * TOP_K))
    return plan_placement(load, speed, np.array(SLOTS), offset=offset)


def predicted_s(view: MeshView, some: Sequence[npt.NDArray[np.int32]]) -> float:
    """Mean of the slowest device's time; the split is by the costs that `view` says."""
    split, weights = Split(), np.ones((TOKENS, TOP_K), np.float32)
    usable = np.ones(len(SPEEDS), np.bool_)
    costs = cost_table([shard.cost for shard in view.shards], [1.0] * len(SPEEDS))
    slowest = []
    for ids in some:
        split.plan(routing_table(view.epoch), 0, usable, costs, ids, weights)
        given = [split.batch(number).experts for number in range(len(SPEEDS))]
        slowest.append(
            max(
                cost.seconds(len(np.unique(mine)), len(mine))
                for cost, mine in zip(COSTS, given, strict=True)
                if len(mine)
            )
        )
    return float(np.mean(slowest))


def bound_s(load: Floats) -> float:
    """No placement is quicker: every expert read once, all devices end together."""
    work = FASTEST.row_s * load.sum() + FASTEST.read_s * EXPERTS + FASTEST.call_s * len(SPEEDS)
    return float(work / sum(SPEEDS))


@contextmanager
def shards_on(nodes: Sequence[Node]) -> Iterator[list[str]]:
    """Their addresses."""
    processes = []
    try:
        for node, cost in zip(nodes, COSTS, strict=True):
            shard = EmulatedShard(f"tcp:{node.address}:0", cost, EXPERTS, TOP_K, HIDDEN)
            command = [sys.executable, "-m", "benchmarks.harness.emulated_shard", shard.to_json()]
            root = str(Path(__file__).parents[1])
            processes.append(node.popen(command, {"PYTHONPATH": root}, stdout=PIPE))
        answers = [process.stdout for process in processes]
        yield [answer.readline().decode().strip() for answer in answers if answer]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def view_of(plan: Placement, addresses: Sequence[str], costs: Sequence[DeviceCost]) -> MeshView:
    epoch = PlanEpoch(1, EXPERTS, (0,), plan.experts, plan.shares)
    peers = tuple(
        Peer(f"s{number}", 0, f"node{number}", (parse_address(address),), cost)
        for number, (address, cost) in enumerate(zip(addresses, costs, strict=True))
    )
    return MeshView(
        version=ViewVersion(1, 1), mesh="mixed", model_path="/nowhere", fingerprint="none",
        router_mode="embedded", soft_deadline_s=5.0, call_deadline_s=10.0, expert_wait_s=10.0,
        epoch=epoch, shards=peers,
    )  # fmt: skip


def time_calls(view: MeshView, some: Sequence[npt.NDArray[np.int32]]) -> float:
    """Mean seconds of a call."""
    dispatcher = Dispatcher(FixedView(view), SECRET)
    rows = torch.randn(TOKENS, HIDDEN).bfloat16()
    weights = torch.rand(TOKENS, TOP_K)
    took = []
    for ids in some:
        start_s = time.perf_counter()
        dispatcher.wait(dispatcher.send(0, rows, weights, torch.from_numpy(ids)))
        took.append(time.perf_counter() - start_s)
    dispatcher.close()
    return float(np.mean(took[WARM_CALLS:]))


def measure(arguments: argparse.Namespace) -> Report:
    if reason := why_not():
        return Report("mixed_mesh", [], [], [reason])
    some = batches(WARM_CALLS + (QUICK_CALLS if arguments.quick else CALLS))
    load = load_of(some)
    alike = [FASTEST] * len(SPEEDS)
    runs: dict[str, dict[str, Any]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="n") as folder,
        Network(len(SPEEDS), Path(folder)) as network,
        shards_on(network.nodes) as addresses,
    ):
        for name, costs in (("knowing speeds", list(COSTS)), ("blind", alike)):
            plan = planned(load, costs)
            view = view_of(plan, addresses, costs)
            call_s = network.nodes[0].call(time_calls, view, some)
            runs[name] = {
                "placement": name,
                "devices": "emulated",
                "predicted_ms": predicted_s(view, some) * 1e3,
                "measured_ms": call_s * 1e3,
                "bound_ms": bound_s(load) * 1e3,
                "tokens_per_s": TOKENS / call_s,
            }
    knowing, blind = runs["knowing speeds"], runs["blind"]
    measured = knowing["measured_ms"]
    off = abs(measured / knowing["predicted_ms"] - 1)
    targets = [
        Target("|measured / predicted - 1|", off, 0.1, "max", ""),
        Target("work bound / measured", knowing["bound_ms"] / measured, 0.95, "min", "x"),
        Target("blind / knowing speeds", blind["measured_ms"] / measured, 1.0, "min", "x"),
    ]
    return Report("mixed_mesh", list(runs.values()), targets, [
        "four namespaces with a network and /dev/shm of their own: rows went over TCP",
    ])  # fmt: skip


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure)
