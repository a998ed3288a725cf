"""A mesh on one machine without Ray: shard and router processes, and a directory in a thread.

The data plane is the product's own, process for process; only who starts it differs. Benchmarks and
equality tests use it to change the number of shards under a running engine.
"""

import asyncio
import multiprocessing as mp
import os
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from actors.descriptions import RouterDescription, ShardDescription
from actors.dispatch.mesh_view import MeshView, Peer
from actors.experts.families import read_expert_spec
from actors.experts.fingerprint import fingerprint
from actors.lean_imports import LEAN_IMPORTS
from actors.process import thread_environment
from actors.shard.shard import ShardConfig
from actors.wire.address import parse_address
from actors.wire.frame import RowCoding
from orchestrator.directory import Directory
from orchestrator.mesh_plan import ShardCapacity, plan_mesh
from placement.cost_model import TYPICAL_COST

START_TIMEOUT_S = 120.0
SECRET = b"local mesh"


@dataclass(frozen=True, slots=True)
class ShardShape:
    """speed: relative, for the plan; memory_bytes: None for room for every expert."""

    speed: float = 1.0
    memory_bytes: int | None = None
    threads: int = 1


def _serve_shard(config: ShardConfig, orders: Connection) -> None:
    """Main function of a shard's process: load what is ordered until told to stop."""
    from actors.shard.shard import ExpertShard
    from benchmarks.harness.orders import hold_exactly

    shard = ExpertShard(config, SECRET)
    orders.send(shard.start())
    while (slots := orders.recv()) is not None:
        orders.send(hold_exactly(shard, slots))
    shard.stop()


def _serve_router(directory: str, listen: str, orders: Connection) -> None:
    from actors.router.router import ExpertRouter, RouterConfig

    router = ExpertRouter(RouterConfig("router-0", directory, (listen,)), SECRET)
    orders.send(router.start())
    orders.recv()
    router.stop()


class LocalMesh:
    """Use as a context manager; `address` is what EXPERTMESH_ADDRESS is set to."""

    def __init__(self, model_path: Path, folder: Path, weights: Path | None = None) -> None:
        """folder: short path for the sockets (they may have 107 bytes).

        weights: another checkpoint for shards to load, which the mesh takes for `model_path`.
        """
        self._weights = weights or model_path
        self._spec = read_expert_spec(model_path)
        self._model_path, self._folder = model_path, folder
        self._spawn = mp.get_context("spawn")
        self._processes: list[tuple[Any, Connection]] = []
        self._empty: list[tuple[Any, Connection]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._directory = Directory(SECRET, term=1)
        self._epoch = 0
        self._view: MeshView | None = None
        self.address = f"unix:{folder}/directory"

    def __enter__(self) -> Self:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._thread.start()
        self._do(self._directory.listen([parse_address(self.address)]))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_processes()
        self._do(self._directory.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_TIMEOUT_S)

    def serve(
        self,
        shards: Sequence[ShardShape],
        mode: str = "embedded",
        tcp: bool = False,
        rows: RowCoding = RowCoding.BF16,
        expert_wait_s: float = 30.0,
    ) -> MeshView:
        """Replace the shards (and router) by these, plan, load, publish; returns the view.

        Subscribers follow when this returns. With `tcp` shards listen on TCP and say they are on
        another node; `rows` is then how rows travel to them. expert_wait_s: how long dispatchers
        wait for an expert that no shard holds.
        """
        old, self._processes = self._processes, []
        self._epoch += 1
        said_by = [self._start_shard(number, shape, tcp) for number, shape in enumerate(shards)]
        capacities = [
            ShardCapacity(
                f"s{n}",
                shape.memory_bytes or self._all_bytes,
                TYPICAL_COST.scaled(shape.speed),
                self._spec.bytes_per_expert,
            )
            for n, shape in enumerate(shards)
        ]
        plan = plan_mesh(self._spec, capacities, "fill", self._epoch)
        for number, (_, orders) in enumerate(self._processes):
            orders.send(plan.epoch.slots_of(number))
        for _, orders in self._processes:
            _answer(orders)
        self._view = MeshView(
            mesh="local", model_path=str(self._model_path),
            fingerprint=fingerprint(self._model_path), router_mode=mode,
            version=self._directory.next_version, soft_deadline_s=5.0,
            call_deadline_s=30.0, expert_wait_s=expert_wait_s, epoch=plan.epoch,
            rows_between_nodes=rows,
            shards=tuple(
                _peer(f"s{n}", said, shape.speed, "elsewhere" if tcp else said.node)
                for n, (said, shape) in enumerate(zip(said_by, shards, strict=True))
            ),
        )  # fmt: skip
        self._publish()
        if mode == "actor":
            said = self._start_router()
            self._view = self._view.with_routers(
                (_peer("r0", said, 1.0, said.node),), self._directory.next_version
            )
            self._publish()
        self._end(old)
        return self._view

    @property
    def _all_bytes(self) -> int:
        return self._spec.bytes_per_expert * self._spec.num_experts * len(self._spec.layers)

    def _publish(self) -> None:
        assert self._view is not None
        self._do(self._directory.publish(self._view))
        version = self._view.version
        if not self._do(self._directory.wait_acknowledged(version, START_TIMEOUT_S)):
            raise TimeoutError("a subscriber does not follow the new view")

    def start_empty_shard(self) -> int:
        """Start one more shard, which holds nothing and nobody calls; returns its process id."""
        self._start_shard(len(self._processes), ShardShape(), tcp=False)
        empty = self._processes.pop()
        self._empty.append(empty)
        _, orders = empty
        orders.send([])
        _answer(orders)
        return int(empty[0].pid)

    def _start_shard(self, number: int, shape: ShardShape, tcp: bool) -> ShardDescription:
        where = "tcp:127.0.0.1:0" if tcp else f"unix:{self._folder}/s{self._epoch}-{number}"
        config = ShardConfig(
            f"s{number}", "local", str(self._weights), "cpu", shape.threads, (where,),
            log_level="WARNING",
        )  # fmt: skip
        said: ShardDescription = self._start(_serve_shard, (config,), shape.threads)
        return said

    def _start_router(self) -> RouterDescription:
        where = f"unix:{self._folder}/r{self._epoch}"
        said: RouterDescription = self._start(_serve_router, (self.address, where), 1)
        return said

    def _start(self, target: Any, arguments: tuple[Any, ...], threads: int) -> Any:
        """What the process says of itself when it has started."""
        here, there = self._spawn.Pipe()
        process = self._spawn.Process(target=target, args=(*arguments, there), daemon=True)
        with environment(thread_environment(threads) | LEAN_IMPORTS):
            process.start()
        there.close()
        self._processes.append((process, here))
        return _answer(here)

    @property
    def pids(self) -> list[int]:
        """Process ids of shards and router."""
        return [process.pid for process, _ in self._processes]

    def stop_processes(self) -> None:
        """End shards and router; the directory stays."""
        self._end(self._processes + self._empty)
        self._processes, self._empty = [], []

    @staticmethod
    def _end(processes: list[tuple[Any, Connection]]) -> None:
        for process, orders in processes:
            try:
                orders.send(None)
            except OSError:
                process.kill()
        for process, orders in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
            orders.close()


def _answer(orders: Connection) -> Any:
    if not orders.poll(START_TIMEOUT_S):
        raise TimeoutError("a process of the local mesh does not answer")
    return orders.recv()


def _peer(name: str, said: ShardDescription | RouterDescription, speed: float, node: str) -> Peer:
    addresses = tuple(map(parse_address, said.addresses))
    return Peer(name, said.incarnation, node, addresses, TYPICAL_COST.scaled(speed))


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the length of a `with` block: what a child inherits."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
