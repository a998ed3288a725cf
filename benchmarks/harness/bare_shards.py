"""Shard processes without a checkpoint: made-up experts behind the product's own shard server.

Two kernels. "free" does nothing but write its sums, so that what is left is the data plane.
"native" is the product's CPU kernel over random weights, so that caches, wake-ups and threads are
as in serving.
"""

import multiprocessing as mp
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.dispatch.mesh_view import MeshView, Peer, ViewVersion
from actors.experts.checkpoint import ExpertTensors
from actors.experts.formats.bf16 import BF16
from actors.experts.spec import Activation, ExpertSpec
from actors.logs import start_logging
from actors.process import thread_environment
from actors.tracing.settings import settings_of_process
from actors.tracing.step_spans import StepSpans
from actors.wire.address import parse_address
from actors.wire.frame import RowCoding
from actors.wire.node import node_id
from actors.wire.spin_time import DEFAULT_SPIN_US, SPIN_VARIABLE
from benchmarks.harness.child_process import environment
from placement.epoch import EMPTY_SLOT, PlanEpoch

SECRET = b"bare shards"
START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class BareMesh:
    """shards: how many; replicated: experts with a replica on every shard; transport: unix or tcp.

    kernel: "free" or "native"; intermediate: I of the native kernel's experts.
    clients: connected dispatchers, of which one calls.
    rows_between_nodes: their coding, over TCP. spin_us: how long shards and client watch for each
    other (see `actors.wire.spin_time`).
    """

    shards: int = 2
    hidden: int = 2048
    num_experts: int = 64
    replicated: int = 0
    transport: str = "unix"
    kernel: str = "free"
    intermediate: int = 128
    rows_between_nodes: str = "bf16"
    spin_us: float = DEFAULT_SPIN_US
    clients: int = 1

    def environment(self) -> dict[str, str]:
        """Of all processes."""
        return thread_environment(1) | {SPIN_VARIABLE: f"{self.spin_us:g}"}

    def spec(self) -> ExpertSpec:
        return ExpertSpec(
            "BareMoe", Path("/nowhere"), (0,), self.num_experts, 8, self.hidden,
            self.intermediate, BF16, Activation(),
        )  # fmt: skip

    def experts_of(self, shard: int) -> list[int]:
        own = range(self.replicated + shard, self.num_experts, self.shards)
        return [*range(self.replicated), *own]

    def epoch(self) -> PlanEpoch:
        slots = max(len(self.experts_of(shard)) for shard in range(self.shards))
        held = np.full((1, self.shards, slots), EMPTY_SLOT, np.int32)
        for shard in range(self.shards):
            experts = self.experts_of(shard)
            held[0, shard, : len(experts)] = experts
        return PlanEpoch(1, self.num_experts, (0,), held, np.ones(held.shape))


class FreeKernel:
    """`ExpertKernel` that costs next to nothing: it writes one value of each row's sums."""

    def load(self, layer: int, experts: list[int]) -> None:
        pass

    def compute(
        self,
        layer: int,
        rows: torch.Tensor,
        row_index: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        sums = torch.empty(rows.shape) if out is None else out
        sums[:, 0] = 1.0
        return sums

    def resident_bytes(self) -> int:
        return 0

    def describe(self) -> str:
        return "no work at all"


def _native_kernel(mesh: BareMesh, shard: int) -> Any:
    from actors.kernels.choose import choose_operator
    from actors.kernels.slot_kernel import SlotKernel

    def read(_: int, expert: int) -> ExpertTensors:
        torch.manual_seed(expert)
        size = mesh.intermediate
        w13 = torch.randn(2 * size, mesh.hidden) / mesh.hidden**0.5
        w2 = torch.randn(mesh.hidden, size) / size**0.5
        return ExpertTensors(w13.bfloat16(), w2.bfloat16())

    spec = mesh.spec()
    kernel = SlotKernel(spec, choose_operator(spec, torch.device("cpu")), read)
    kernel.load(0, mesh.experts_of(shard))
    return kernel


def _serve(mesh: BareMesh, shard: int, listen: str, orders: Connection) -> None:
    from actors.shard.server import ShardServer

    start_logging("WARNING")
    torch.set_num_threads(1)
    kernel = FreeKernel() if mesh.kernel == "free" else _native_kernel(mesh, shard)
    settings = settings_of_process()
    spans = StepSpans.to_collector(settings) if settings else None
    server = ShardServer(mesh.spec(), kernel, [parse_address(listen)], SECRET, spans=spans)
    orders.send(str(server.addresses[0]))
    server.run()


@contextmanager
def bare_shards(mesh: BareMesh, folder: Path) -> Iterator[tuple[MeshView, Sequence[Any]]]:
    """Shard processes for the length of a `with` block: their view and the processes."""
    spawn = mp.get_context("spawn")
    processes, peers = [], []
    try:
        for shard in range(mesh.shards):
            listen = f"unix:{folder}/b{shard}" if mesh.transport == "unix" else "tcp:127.0.0.1:0"
            here, there = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(mesh, shard, listen, there), daemon=True)
            with environment(mesh.environment()):
                process.start()
            processes.append(process)
            if not here.poll(START_TIMEOUT_S):
                raise TimeoutError(f"shard {shard} does not start")
            node = node_id() if mesh.transport == "unix" else "elsewhere"
            peers.append(Peer(f"b{shard}", 0, node, (parse_address(here.recv()),)))
        yield (
            MeshView(
                version=ViewVersion(1, 1),
                mesh="bare",
                model_path="/nowhere",
                fingerprint="none",
                router_mode="embedded",
                soft_deadline_s=0.25,
                call_deadline_s=5.0,
                expert_wait_s=5.0,
                epoch=mesh.epoch(),
                shards=tuple(peers),
                rows_between_nodes=RowCoding[mesh.rows_between_nodes.upper()],
            ),
            processes,
        )
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        if mesh.transport == "unix":
            for shard in range(mesh.shards):
                Path(f"{folder}/b{shard}").unlink(missing_ok=True)
