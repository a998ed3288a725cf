"""What streams notice when a part of the mesh is lost and what it did can be done elsewhere.

Eight streams of the demo model through the whole mesh: endpoint, engine, three shards that each
hold every expert. While they run one shard is stopped (SIGSTOP), later one is killed (SIGKILL), and
the controller; on a mesh whose experts have one copy each, a shard is killed; on three nodes made
of network namespaces (root and iproute2), one node's cable is pulled, and, where the experts have
one copy each, that of a node with two of the four shards. Then the same streams again, while the
lost part is away or being replaced. Then one of two engines is killed, actor and all.
As root, clients come before the mesh on the cores that both share (`harness.stream_clients`).

  failed, different  streams that did not end well; whose greedy text is not the undisturbed one
  gap_ms             longest time between two pieces of any stream, after the loss
  back_s             from the loss until a second's throughput is again BACK of what it was before
  away_gap_ms        gap_ms of the streams that start after the loss
"""

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.correctness import DEMO
from benchmarks.harness.report import Report, Target, run_benchmark
from benchmarks.harness.stream_clients import prior_streams
from tests.e2e.mesh_process import MeshProcess
from tests.nodes.cluster import Cluster
from tests.nodes.meshes import EVERY_EXPERT, MODEL, mesh_on
from tests.nodes.network import Network, Node, why_not
from tests.nodes.streams import PROMPTS, Stream, streaming

TOKENS, QUICK_TOKENS = 400, 200
GAP_GOAL_S = 0.5
ENGINE_GAP_GOAL_S = 2.0
ENGINE_OTHER_TEXT_GOAL = 5 / 120
"""Share of continued greedy texts that may differ: where prefill and decode round differently."""
BACK_GOAL_S = 2.0
LOAD_GOAL_S = 5.0
"""Longest gap where the lost experts have to be loaded by other shards first."""
LAST_COPIES = "last copies"
NODE_OF_LAST_COPIES = "node with last copies"
BACK = 0.8
"""Share of the throughput before the loss; not all, for one shard in three is gone for good."""
WINDOW_S = 1.0
SETTLE_S = 1.0
"""How long streams run before the loss: what throughput is measured on."""


@dataclass(frozen=True, slots=True)
class Client:
    """Asks for the same streams again and again. node: where it is; None: here."""

    url: str
    tokens: int
    node: Node | None = None

    def streams(self, disturb: Callable[[], None] = lambda: None) -> tuple[list[Stream], float]:
        """The streams, ended, and when `disturb` was called."""
        asking = (
            streaming(self.url, PROMPTS, self.tokens, self.node)
            if self.node
            else prior_streams(self.url, PROMPTS, self.tokens)
        )
        with asking as streams:
            time.sleep(SETTLE_S)
            since_s = time.monotonic()
            disturb()
        return streams, since_s


def arrivals(streams: Sequence[Stream]) -> np.ndarray:
    """When pieces came, of all streams together, ascending."""
    return np.sort(np.concatenate([np.asarray(stream.arrivals_s) for stream in streams]))


def back_after_s(times_s: np.ndarray, since_s: float) -> float:
    """Seconds after `since_s` from which on a window holds BACK of what one held before it; inf if
    that never comes."""
    before = np.count_nonzero((times_s > since_s - WINDOW_S) & (times_s <= since_s))
    last_s = times_s[-1] - WINDOW_S
    for start_s in np.arange(since_s, max(last_s, since_s), 0.05):
        inside = np.count_nonzero((times_s > start_s) & (times_s <= start_s + WINDOW_S))
        if inside >= BACK * before:
            return float(start_s - since_s)
    return float("inf")


def measured(name: str, client: Client, lose: Callable[[], None]) -> dict[str, Any]:
    """One row: streams under which `lose` is called, and again while the part stays away."""
    whole, _ = client.streams()
    texts = [stream.text for stream in whole]
    streams, since_s = client.streams(lose)
    away, away_s = client.streams()
    both = [*streams, *away]
    return {
        "lost": name,
        "streams": len(streams),
        "failed": sum(bool(stream.error) for stream in both),
        "different": sum(
            stream.text != text for stream, text in zip(both, texts + texts, strict=True)
        ),
        "gap_ms": 1e3 * max(stream.gap_s(since_s) for stream in streams),
        "back_s": back_after_s(arrivals(streams), since_s),
        "away_gap_ms": 1e3 * max(stream.gap_s(away_s) for stream in away),
        "undisturbed_gap_ms": 1e3 * max(stream.gap_s() for stream in whole),
    }


@contextmanager
def local_mesh(
    engines: int = 1, memory: str = EVERY_EXPERT, redundant: int | str = "fill"
) -> Iterator[MeshProcess]:
    """Three shards on this machine in a private Ray session, by default each with every expert."""
    pool = {"vendor": "cpu", "memory": memory, "speed": 1.0}
    config = {
        "mesh": {"name": "failover"},
        "model": {"path": str(DEMO / "checkpoint"), "served_name": MODEL},
        "engines": {
            "replicas": engines,
            "vllm": {"max_num_seqs": 16, "max_num_batched_tokens": 512},
        },
        "pools": {"a": pool, "b": pool, "c": pool},
        "placement": {"redundant_slots": redundant},
        "gateway": {"port": 0},
    }
    with MeshProcess(config) as mesh:
        mesh.wait_for("ready at")
        yield mesh


def shard_losses(tokens: int) -> list[dict[str, Any]]:
    with local_mesh() as mesh:
        pids = {c["id"]: c["pid"] for c in mesh.quick_status()["components"]}
        client = Client(mesh.url, tokens)
        rows = [("shard stopped", "b-0", signal.SIGSTOP), ("shard killed", "c-0", signal.SIGKILL)]
        rows += [("controller killed", "controller", signal.SIGKILL)]
        return [measured(name, client, partial(os.kill, pids[id], how)) for name, id, how in rows]


def last_copies(tokens: int) -> list[dict[str, Any]]:
    """Each expert once, and room for the experts of any one shard on the others."""
    with local_mesh(memory="9MiB", redundant=0) as mesh:
        pids = {c["id"]: c["pid"] for c in mesh.quick_status()["components"]}
        kill = partial(os.kill, pids["c-0"], signal.SIGKILL)
        return [measured(LAST_COPIES, Client(mesh.url, tokens), kill)]


def engine_killed(tokens: int) -> dict[str, Any]:
    with local_mesh(engines=2) as mesh:
        components = mesh.quick_status()["components"]
        pid = next(c["pid"] for c in components if c["kind"] == "engine")
        client = Client(mesh.url, tokens)
        return measured("engine killed", client, lambda: os.kill(pid, signal.SIGKILL))


@contextmanager
def three_nodes() -> Iterator[Cluster]:
    with (
        tempfile.TemporaryDirectory(prefix="n") as folder,
        tempfile.TemporaryDirectory() as logs,
        Network(3, Path(folder)) as network,
    ):
        yield Cluster(network, Path(logs))


def cable_pulled(tokens: int) -> dict[str, Any]:
    with three_nodes() as cluster, mesh_on(cluster, "three", cluster.nodes) as mesh:
        client = Client(mesh.url, tokens, cluster.head)
        return measured("cable pulled", client, cluster.nodes[2].pull)


def node_of_last_copies(tokens: int) -> dict[str, Any]:
    """Half of the experts are in the two shards of one node, each once; the others have room."""
    with (
        three_nodes() as cluster,
        mesh_on(cluster, "four", cluster.nodes, {"node2": 2}, redundant_slots=0) as mesh,
    ):
        client = Client(mesh.url, tokens, cluster.head)
        return measured(NODE_OF_LAST_COPIES, client, cluster.nodes[2].pull)


def measure(arguments: argparse.Namespace) -> Report:
    tokens = QUICK_TOKENS if arguments.quick else TOKENS
    runs = [*shard_losses(tokens), *last_copies(tokens), engine_killed(tokens)]
    notes = [f"{len(PROMPTS)} streams of {tokens} tokens, demo model, three copies of each expert"]
    if reason := why_not():
        notes.append(f"no cable was pulled: {reason}")
    else:
        runs += [cable_pulled(tokens), node_of_last_copies(tokens)]
    return Report("failover", runs, [target for run in runs for target in targets(run)], notes)


def targets(run: dict[str, Any]) -> list[Target]:
    lost = run["lost"]
    if lost == "engine killed":
        return engine_targets(run)
    if lost in (
        LAST_COPIES,
        NODE_OF_LAST_COPIES,
    ):  # its experts are computed elsewhere, in sums of another grouping
        gap = Target(
            f"{lost}: longest gap", run["gap_ms"] / 1e3, LOAD_GOAL_S, "max", "s", timed=True
        )
        return [Target(f"{lost}: failed streams", run["failed"], 0, "max", ""), gap]
    return [
        Target(f"{lost}: failed streams", run["failed"], 0, "max", ""),
        Target(f"{lost}: other text", run["different"], 0, "max", ""),
        Target(f"{lost}: longest gap", run["gap_ms"] / 1e3, GAP_GOAL_S, "max", "s", timed=True),
        Target(f"{lost}: throughput back", run["back_s"], BACK_GOAL_S, "max", "s", timed=True),
        Target(
            f"{lost}: longest gap later",
            run["away_gap_ms"] / 1e3,
            GAP_GOAL_S,
            "max",
            "s",
            timed=True,
        ),
    ]


def engine_targets(run: dict[str, Any]) -> list[Target]:
    lost, share = run["lost"], run["different"] / (2 * run["streams"])
    gap_s = run["gap_ms"] / 1e3
    return [
        Target(f"{lost}: failed streams", run["failed"], 0, "max", ""),
        Target(f"{lost}: share of other texts", share, ENGINE_OTHER_TEXT_GOAL, "max", ""),
        Target(f"{lost}: longest gap", gap_s, ENGINE_GAP_GOAL_S, "max", "s", timed=True),
    ]


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
