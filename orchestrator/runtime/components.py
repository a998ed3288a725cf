"""Every process of the mesh, over Ray: adopted by name, or started. The real `clients.Components`.

A process outlives who started it. Whoever needs it looks its name up first, so a start that was
asked for twice, or by a controller that is gone, is one start.
"""

import asyncio
import importlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.descriptions import EngineDescription, RouterDescription, Said, ShardDescription
from actors.tracing.settings import SpanSettings
from actors.watched import Watcher
from actors.wire.node import node_id
from orchestrator import cluster
from orchestrator.actor_names import ActorName
from orchestrator.checkpoints import Checkpoint, check_shard
from orchestrator.config.pools import PoolConfig
from orchestrator.control.actions import StartComponent
from orchestrator.control.clients import Gone
from orchestrator.control.lifecycle import Kind
from orchestrator.control.state import Description
from orchestrator.engine_settings import engine_config, loads_beside_shards
from orchestrator.errors import UserError
from orchestrator.resources import Demand, engine_demand, shard_demand
from orchestrator.runtime.describing import Describer, describe_other, memory_of_shard
from orchestrator.runtime.mesh import Mesh, tcp_security
from orchestrator.runtime.process import Process
from orchestrator.runtime.room import no_room_for, unless
from orchestrator.runtime.way_costs import WayCosts
from orchestrator.telemetry.step_tracing import span_settings
from orchestrator.upgrade.effects import ENGINES, ROUTERS

log = logging.getLogger(__name__)

PROBE_TIMEOUT = 0.5
"""Part of the pause between two probes within which one has to be answered. Were it all of it, a
probe would still wait when the next is due, which would be left out: every second one, that is."""

Told = Callable[[ActorName, str], None]
"""Called with a process that has ended, and why."""


class RayComponents:
    """Processes by place and generation.

    placed: set when dispatchers have a first view; what cannot start before waits for it. refusals:
    why components would not start, other than by dying; a mesh that never served gives up then.
    ways: what the ways to shards cost.
    """

    def __init__(self, mesh: Mesh, term: int, logs: Path, told: Told) -> None:
        """term: of this controller. logs: folder of this machine's Ray worker logs."""
        self.placed = asyncio.Event()
        self.refusals: list[UserError] = []
        self.ways = WayCosts()
        self._mesh = mesh
        self._term = term
        self._watches = 0
        self._logs = logs
        self._told = told
        self._describer = Describer(mesh.spec)
        self._pools: dict[ActorName, str] = {}
        self._processes: dict[tuple[str, int], Process] = {}

    # -- Components

    async def start(self, action: StartComponent) -> None:
        """See `clients.Components`."""
        name = ActorName(action.kind, action.component, action.generation)
        if action.kind is Kind.SHARD:
            self._pools[name] = action.pool
        process = self._known(name) or await self._find_or_create(name)
        try:
            await self._until_it_serves(process)
        except UserError as error:
            raise self._refuse(process, error) from error
        except RayError as error:
            what = f"{name.kind} {name.id} did not start: {process.why_it_failed(error)}"
            raise self._refuse(process, UserError(what)) from error

    def find(self, id: str, generation: int) -> Process | None:
        """See `clients.Components`."""
        return self._processes.get((id, generation)) or self._stray(id, generation)

    # -- questions

    def said(self, id: str, generation: int) -> Said | None:
        """What the process of a place said last, also after its end."""
        process = self._processes.get((id, generation))
        return process.said if process else None

    def handle(self, id: str, generation: int) -> ActorHandle | None:
        process = self._processes.get((id, generation))
        return process.handle if process else None

    def __iter__(self) -> Iterator[Process]:
        return iter(self._processes.values())

    def close(self) -> None:
        """Watch nothing any more; ends no process."""
        for process in self:
            process.forget()

    # -- starting

    def _known(self, name: ActorName) -> Process | None:
        process = self._processes.get((name.id, name.generation))
        return None if process is None or process.died.done() else process

    async def _find_or_create(self, name: ActorName) -> Process:
        if name.kind is Kind.SHARD:
            # Imports torch: seconds in which other calls should go out.
            await asyncio.to_thread(importlib.import_module, "actors.shard.shard")
        await self._its_turn(name)
        handle = await asyncio.to_thread(cluster.find_actor, name) or self._create(name)
        return self._add(name, handle)

    async def _its_turn(self, name: ActorName) -> None:
        """Routers need a view to start with, and so do engines that are quicker than the shards."""
        beside = name.kind is Kind.ENGINE and loads_beside_shards(self._mesh.spec)
        if name.kind is not Kind.SHARD and not beside:
            await self.placed.wait()

    def _add(self, name: ActorName, handle: ActorHandle) -> Process:
        settings = self._mesh.config.controller
        process = Process(
            name,
            handle,
            self._description,
            self._logs,
            probe_timeout_s=PROBE_TIMEOUT * settings.probe_interval_s,
            drain_timeout_s=settings.drain_timeout_s,
        )
        self._processes[name.id, name.generation] = process
        self._watches += 1
        watcher: Watcher = (self._term, self._watches)
        process.watch(watcher, lambda why: self._told(name, why))
        return process

    async def _until_it_serves(self, process: Process) -> None:
        demand = self._demand(process.name)
        if demand is None:
            await process.start()
        else:
            timeout_s = self._mesh.config.cluster.room_timeout_s
            await unless(process.start(), no_room_for(process.handle, demand, timeout_s))
        if isinstance(process.said, ShardDescription):
            self._check_checkpoint(process.name, process.said)
            await self._measure(process)

    async def _measure(self, process: Process) -> None:
        """Have a shard measure what its calls cost, unless the config says so."""
        assert isinstance(process.said, ShardDescription)
        if self._pool_of(process.name).speed is None and process.said.cost is None:
            await process.handle.measure.remote()
            await process.describe()

    def _check_checkpoint(self, name: ActorName, said: ShardDescription) -> None:
        """Raises UserError where the shard's node has another checkpoint than this one, or than
        other shards of its pool."""
        own = Checkpoint(f"the controller on {_host(node_id())}", self._mesh.fingerprint)
        pool, base = self._pools[name], str(self._mesh.config.model.path)
        others = [
            _checkpoint(one.name, one.said, self._pools[one.name])
            for one in self
            if isinstance(one.said, ShardDescription)
            and one.name in self._pools
            and one.name != name
            and not one.died.done()
        ]
        paths = (base, str(self._mesh.pool(pool).checkpoint))
        check_shard(_checkpoint(name, said, pool), others, own, *paths)

    def _refuse(self, process: Process, error: UserError) -> Gone:
        """It must not go on half started; the next try is a new process."""
        self.refusals.append(error)
        process.kill()
        return Gone(error.message)

    def _demand(self, name: ActorName) -> Demand | None:
        if name.kind is Kind.SHARD:
            return shard_demand(self._mesh.config, self._pools[name])
        return engine_demand(self._mesh.config) if name.kind is Kind.ENGINE else None

    # -- creating

    def _create(self, name: ActorName) -> ActorHandle:
        match name.kind:
            case Kind.SHARD:
                return self._create_shard(name)
            case Kind.ROUTER:
                return self._create_router(name)
            case Kind.ENGINE:
                return self._create_engine(name)

    def _create_shard(self, name: ActorName) -> ActorHandle:
        from actors.shard.shard import ShardConfig, StandsIn

        mesh, pool = self._mesh, self._pool_of(name)
        base = str(mesh.config.model.path)
        tolerance = pool.checkpoint_tolerance
        config = ShardConfig(
            id=name.id,
            pool=self._pools[name],
            model_path=str(pool.checkpoint or base),
            device=pool.device,
            vendor=pool.vendor,
            threads=pool.threads,
            listen=self._listen(name),
            emulated=pool.emulated,
            emulated_speed=pool.speed or 1.0 if pool.emulated else 1.0,
            log_level=mesh.config.logging.level,
            security=tcp_security(mesh.config),
            kernel=pool.kernel,
            predictors=mesh.spec.predictors > 0,
            spans=self._spans("shard", name.id),
            stands_in=StandsIn(base, tolerance) if tolerance is not None else None,
            setup=mesh.setups[self._pools[name]],
        )
        return cluster.start_shard(name, config, pool, mesh.secret, mesh.shares.spin_us)

    def _create_router(self, name: ActorName) -> ActorHandle:
        from actors.router.router import RouterConfig

        mesh = self._mesh
        config = RouterConfig(
            id=name.id,
            directory=str(mesh.directory),
            listen=self._listen(name),
            log_level=mesh.config.logging.level,
            security=tcp_security(mesh.config),
            spans=self._spans("router", name.id),
            setup=mesh.setups[ROUTERS],
        )
        return cluster.start_router(name, config, mesh.secret, mesh.shares.spin_us)

    def _create_engine(self, name: ActorName) -> ActorHandle:
        mesh = self._mesh
        config = engine_config(mesh.config, name.id, mesh.directory, mesh.secret, mesh.run_dir)
        config = config.model_copy(update={"setup": mesh.setups[ENGINES]})
        return cluster.start_engine(name, config, mesh.config.engines.resources, mesh.shares)

    def _spans(self, kind: str, id: str) -> SpanSettings | None:
        config = self._mesh.config
        return span_settings(config.telemetry, config.mesh.name, kind, id)

    def _listen(self, name: ActorName) -> tuple[str, str]:
        return (self._mesh.run_dir.socket(name.socket), self._mesh.tcp_listen)

    # -- describing

    def _description(self, name: ActorName, said: Said) -> Description:
        if isinstance(said, RouterDescription | EngineDescription):
            return describe_other(said)
        others = [
            (other.said, self._pool_of(other.name))
            for other in self
            if isinstance(other.said, ShardDescription)
            and other.name.id != name.id
            and not other.died.done()
        ]
        pool = self._pool_of(name)
        memory_bytes, way = memory_of_shard(said, pool, others), self.ways.of(name.id)
        return self._describer.shard(said, pool, memory_bytes, way, 1 + len(others))

    def _pool_of(self, name: ActorName) -> PoolConfig:
        return self._mesh.pool(self._pools[name])

    def _stray(self, id: str, generation: int) -> Process | None:
        """A process that an earlier controller started and this one was not asked to adopt."""
        for kind in Kind:
            name = ActorName(kind, id, generation)
            handle = cluster.find_actor(name)
            if handle is not None:
                return self._add(name, handle)
        return None


def _checkpoint(name: ActorName, said: ShardDescription, pool: str) -> Checkpoint:
    who = f"{name.id} on {_host(said.node)}"
    return Checkpoint(who, said.fingerprint, pool, said.variant)


def _host(node: str) -> str:
    """Host name in a node's identity."""
    return node.partition("/")[0]
