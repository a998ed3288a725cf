"""A mesh on one machine without Ray: shard and router processes, and a directory in a thread.

What a controller does at its start is done here with the same code, from the config to the view;
only who carries the calls to the processes differs, and nothing watches them afterwards. Benchmarks
and equality tests use it to change the number of shards under a running engine.
"""

import asyncio
import math
import threading
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from actors.descriptions import RouterDescription, Said, ShardDescription
from actors.dispatch.mesh_view import MeshView, Peer
from actors.experts.families import read_expert_spec
from actors.experts.fingerprint import fingerprint
from actors.router.router import RouterConfig as RouterArguments
from actors.shard.shard import ShardConfig
from actors.wire.address import parse_address
from actors.wire.frame import RowCoding
from benchmarks.harness.child_process import ChildProcess, make_router, make_shard
from orchestrator.config.pools import PoolConfig
from orchestrator.config.schema import MeshConfig, MeshSection
from orchestrator.config.serving import ModelConfig, RouterConfig, RouterMode, RowsBetweenNodes
from orchestrator.config.telemetry import TelemetryConfig
from orchestrator.control.actions import Prepare
from orchestrator.control.keys import Copies, Keys
from orchestrator.control.lifecycle import Kind
from orchestrator.control.planning import Grid
from orchestrator.control.state import Description, Epoch, EpochId, Intent, Order, Place, State
from orchestrator.directory import Directory
from orchestrator.mesh_plan import ShardCapacity, plan_mesh
from orchestrator.run_dir import RunDir
from orchestrator.runtime.describing import Describer, cost_of, describe_other
from orchestrator.runtime.epoch_view import peer_of, view_of
from orchestrator.runtime.intent import keys_of, places_of
from orchestrator.runtime.mesh import Mesh
from orchestrator.telemetry.step_tracing import span_settings
from placement.cost_model import DeviceCost

T = TypeVar("T")

TIMEOUT_S = 300.0
SECRET = b"local mesh"
NO_LIMIT_BYTES = 1 << 62
"""Plans count the checkpoint's bytes here; a kernel may keep more."""


@dataclass(frozen=True, slots=True)
class ShardShape:
    """speed: relative, for the plan; memory_bytes: None for room for every expert."""

    speed: float = 1.0
    memory_bytes: int | None = None
    threads: int = 1


class LocalMesh:
    """Use as a context manager; `address` is what EXPERTMESH_ADDRESS is set to."""

    def __init__(
        self,
        model_path: Path,
        folder: Path,
        weights: Path | None = None,
        predictors: bool = False,
        telemetry: TelemetryConfig | None = None,
    ) -> None:
        """folder: short path for the sockets (they may have 107 bytes).

        weights: another checkpoint for shards to load, which the mesh takes for `model_path`.
        predictors: with the layers of multi-token prediction.
        telemetry: where shards send spans of sampled steps.
        """
        self._weights = weights or model_path
        self._telemetry = telemetry or TelemetryConfig()
        self._spec = read_expert_spec(model_path, predictors=predictors)
        self._describer = Describer(self._spec)
        self._model_path, self._folder = model_path, folder
        self._processes: list[ChildProcess] = []
        self._empty: list[ChildProcess] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._directory = Directory(SECRET, term=1)
        self._started = 0
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
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)

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
        config = self._config(shards, mode, rows, expert_wait_s)
        view: MeshView = self._do(self._serve(config, tcp))
        return view

    async def _serve(self, config: MeshConfig, tcp: bool) -> MeshView:
        old, self._processes = self._processes, []
        places = places_of(config)
        mesh = Mesh(
            config, RunDir(self._folder), SECRET, self._spec, fingerprint(self._model_path),
            parse_address(self.address),
        )  # fmt: skip
        shards = {
            id: self._start_shard(id, config.pools[place.pool], tcp)
            for id, place in places.items()
            if place.kind is Kind.SHARD
        }
        said = dict(zip(shards, await _all(one.start() for one in shards.values()), strict=True))
        copies = self._plan(config, shards)
        await _all(load(one, id, copies[id]) for id, one in shards.items())
        costs = {id: _cost(one, config.pools[places[id].pool]) for id, one in shards.items()}
        if tcp:
            said = {id: replace(one, node="elsewhere") for id, one in said.items()}
        peers = {id: peer_of(id, one, costs[id]) for id, one in said.items()}
        view = await self._publish(mesh, places, copies, peers)
        for id, place in places.items():
            if place.kind is Kind.ROUTER:
                peers[id] = peer_of(id, await self._start_router(id).start())
                view = await self._publish(mesh, places, copies, peers)
        await _all(one.end(kill=False) for one in old)
        return view

    def _config(
        self, shards: Sequence[ShardShape], mode: str, rows: RowCoding, expert_wait_s: float
    ) -> MeshConfig:
        every = self._spec.bytes_per_expert * self._spec.num_experts * len(self._spec.layers)
        return MeshConfig(
            mesh=MeshSection(name="local"),
            model=ModelConfig(path=self._model_path),
            router=RouterConfig(
                mode=RouterMode(mode), rows_between_nodes=RowsBetweenNodes[rows.name],
                soft_deadline_s=5.0, call_deadline_s=30.0, expert_wait_s=expert_wait_s,
            ),
            pools={
                f"s{number}": PoolConfig(
                    vendor="cpu", memory=shape.memory_bytes or every, speed=shape.speed,
                    threads=shape.threads,
                )
                for number, shape in enumerate(shards)
            },
        )  # fmt: skip

    def _plan(self, config: MeshConfig, shards: dict[str, ChildProcess]) -> Copies:
        """What each of the shards is to hold: all that fits."""
        capacities = [
            ShardCapacity(id, pool.memory or 0, _cost(one, pool), self._spec.bytes_per_expert)
            for (id, one), pool in zip(shards.items(), config.pools.values(), strict=True)
        ]
        plan = plan_mesh(self._spec, capacities, config.placement.redundant_slots, 1)
        grid = Grid(self._spec.layers, self._spec.num_experts)
        return grid.copies(plan.epoch.experts, list(shards))

    async def _publish(
        self, mesh: Mesh, places: dict[str, Place], copies: Copies, peers: dict[str, Peer]
    ) -> MeshView:
        version = self._directory.next_version
        incarnations = {id: peer.incarnation for id, peer in peers.items()}
        epoch = Epoch(EpochId(version.term, version.number), copies, incarnations)
        intent = Intent(keys=keys_of(self._spec), places=places, epoch=epoch)
        known = {(id, peer.incarnation): peer for id, peer in peers.items()}
        view = view_of(State(intent=intent), mesh, known)
        await self._directory.publish(view)
        if not await self._directory.wait_acknowledged(version, TIMEOUT_S):
            raise TimeoutError("a subscriber does not follow the new view")
        return view

    def start_empty_shard(self) -> int:
        """Start one more shard, which holds nothing and nobody calls; returns its process id."""
        empty = self._start_shard("empty", PoolConfig(vendor="cpu"), tcp=False)
        self._processes.remove(empty)
        self._empty.append(empty)
        self._do(empty.start())
        self._do(load(empty, "empty", frozenset()))
        return empty.pid

    def _start_shard(self, id: str, pool: PoolConfig, tcp: bool) -> ChildProcess:
        config = ShardConfig(
            id, "local", str(self._weights), "cpu", pool.threads,
            ("tcp:127.0.0.1:0" if tcp else self._socket(id),), log_level="WARNING",
            predictors=self._spec.predictors > 0,
            spans=span_settings(self._telemetry, "local", "shard", id),
        )  # fmt: skip

        def describe(said: Said) -> Description:
            assert isinstance(said, ShardDescription)
            return self._describer.shard(said, pool, NO_LIMIT_BYTES)

        shard = ChildProcess(make_shard, config, SECRET, pool.threads, describe)
        self._processes.append(shard)
        return shard

    def _start_router(self, id: str) -> ChildProcess:
        def describe(said: Said) -> Description:
            assert isinstance(said, RouterDescription)
            return describe_other(said)

        arguments = RouterArguments(id, self.address, (self._socket(id),))
        router = ChildProcess(make_router, arguments, SECRET, 1, describe)
        self._processes.append(router)
        return router

    def _socket(self, id: str) -> str:
        """Of a process of its own each time: the one before it in this place may still serve."""
        self._started += 1
        return f"unix:{self._folder}/{id}.{self._started}"

    @property
    def pids(self) -> list[int]:
        """Process ids of shards and router."""
        return [process.pid for process in self._processes]

    def stop_processes(self) -> None:
        """End shards and router; the directory stays."""
        processes = self._processes + self._empty
        self._processes, self._empty = [], []
        self._do(_all(process.end(kill=False) for process in processes))


async def load(shard: ChildProcess, id: str, keys: Keys) -> None:
    """Have a shard that holds nothing load these, as quickly as it can."""
    said = await shard.obey(
        Prepare(
            id=f"load/{id}", step="load", reason="a local mesh starts", shard=id, generation=1,
            order=Order(1, 1), keys=keys, bytes_per_s=math.inf,
        )
    )  # fmt: skip
    if said.failure:
        raise RuntimeError(said.failure)


def _cost(shard: ChildProcess, pool: PoolConfig) -> DeviceCost:
    assert isinstance(shard.said, ShardDescription)
    return cost_of(shard.said, pool)


async def _all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    return await asyncio.gather(*calls)
