"""Brings a mesh up: shards, plan, experts, router, engines, in the order they need each other."""

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from actors.dispatch.mesh_view import MeshView, Peer
from actors.experts.families import read_expert_spec
from actors.experts.fingerprint import fingerprint
from actors.wire.address import parse_address
from actors.wire.frame import RowCoding
from actors.wire.node import node_id
from actors.wire.security import HANDSHAKE_ONLY, TcpSecurity
from orchestrator import cluster
from orchestrator.capacity import ShardMemory, memory_of_shards
from orchestrator.checkpoints import check_same
from orchestrator.components import Component, MeshParts
from orchestrator.config.pools import PoolConfig
from orchestrator.config.schema import MeshConfig
from orchestrator.config.serving import RouterMode
from orchestrator.core_shares import core_shares
from orchestrator.directory import Directory
from orchestrator.engine_settings import engine_config, loads_beside_shards
from orchestrator.resources import Demand, engine_demand, shard_demand
from orchestrator.room import no_room_for, unless
from orchestrator.run_dir import RunDir
from orchestrator.status import ComponentKind
from orchestrator.watch import Watch
from placement.cost_model import TYPICAL_COST, DeviceCost

if TYPE_CHECKING:
    from orchestrator.mesh_plan import ShardCapacity

log = logging.getLogger(__name__)

ENGINE_CONCURRENCY = 1024
"""Requests one engine actor may be handed at once; vLLM queues what it does not run."""


class BringUp:
    """One start of one mesh. What it has started so far is in `parts`, also after a failure."""

    def __init__(
        self,
        config: MeshConfig,
        run_dir: RunDir,
        secret: bytes,
        parts: MeshParts,
        watch: Watch,
        directory: Directory,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._secret = secret
        self._parts = parts
        self._watch = watch
        self._directory = directory
        self._private = config.cluster.ray_address is None
        self._shares = core_shares(config)

    async def run(self) -> None:
        """Return when everything serves.

        Raises:
            UserError: the model, the memory or a component's start will not do.
        """
        self._parts.spec = read_expert_spec(self._config.model.path)
        if loads_beside_shards(self._parts.spec):
            await _together(self._start_engines(), self._start_data_plane())
        else:
            await self._start_data_plane()
            await self._start_engines()

    async def _start_data_plane(self) -> None:
        """Shards, plan, experts and, in that mode, the router."""
        await self._start_shards()
        await self._place_experts()
        if self._config.router.mode is RouterMode.ACTOR:
            await self._start_routers()
        self._parts.phase = ("Load the engine", "")

    async def _start_shards(self) -> None:
        self._parts.phase = ("Start expert shards", "")
        # Imports torch: seconds in which the engines' calls should go out.
        await asyncio.to_thread(importlib.import_module, "actors.shard.shard")
        for name, pool in self._config.pools.items():
            for number in range(pool.shards):
                self._parts.shards.append(self._new_shard(f"{name}-{number}", name, pool))
        started = 0

        async def start(shard: Component) -> None:
            nonlocal started
            assert shard.pool is not None
            shard.info = await self._start_of(
                shard,
                self._config.controller.shard_start_timeout_s,
                shard_demand(self._config, shard.pool),
            )
            started += 1
            self._parts.phase = ("Start expert shards", f"{started} of {len(self._parts.shards)}")

        await asyncio.gather(*map(start, self._parts.shards))

    async def _start_of(self, component: Component, timeout_s: float, demand: Demand) -> Any:
        """What a component's `start` returns. Raises UserError: it does not start, or has no room
        on any node."""
        answer = self._watch.must(component, component.handle.start.remote(), timeout_s)
        room_timeout_s = self._config.cluster.room_timeout_s
        return await unless(answer, no_room_for(component.handle, demand, room_timeout_s))

    def _new_shard(self, shard_id: str, pool_name: str, pool: PoolConfig) -> Component:
        from actors.shard.shard import ShardConfig

        config = ShardConfig(
            id=shard_id,
            pool=pool_name,
            model_path=str(self._config.model.path),
            device=pool.device,
            threads=pool.threads,
            listen=(self._run_dir.socket(shard_id), self._tcp_listen),
            emulated=pool.emulated,
            emulated_speed=pool.speed or 1.0 if pool.emulated else 1.0,
            log_level=self._config.logging.level,
            security=tcp_security(self._config),
        )
        handle = cluster.start_shard(config, pool, self._secret, self._shares.spin_us)
        return Component(
            shard_id, ComponentKind.SHARD, handle, pool=pool_name, emulated=pool.emulated
        )

    @property
    def _tcp_listen(self) -> str:
        # A private session is one machine: nothing needs to be reachable from outside.
        return "tcp:127.0.0.1:0" if self._private else "tcp:node:0"

    async def _place_experts(self) -> None:
        """Plan the first epoch, load it, tell the dispatchers."""
        from orchestrator.mesh_plan import plan_mesh, relative_speeds

        assert self._parts.spec is not None
        self._parts.phase = ("Place experts", "")
        self._check_checkpoints()
        capacities = await self._capacities()
        speeds, _ = relative_speeds(self._parts.spec, capacities)
        for shard, capacity, speed in zip(self._parts.shards, capacities, speeds, strict=True):
            shard.cost, shard.speed = capacity.cost, float(speed)
        plan = plan_mesh(
            self._parts.spec, capacities, self._config.placement.redundant_slots, number=1
        )
        log.info("plan epoch 1: balance %.3f, %s", plan.balance, plan.reason)
        self._parts.phase = ("Load experts", "")
        await asyncio.gather(
            *(
                self._watch.must(
                    shard,
                    shard.handle.load.remote(plan.epoch.slots_of(number)),
                    self._config.controller.shard_start_timeout_s,
                )
                for number, shard in enumerate(self._parts.shards)
            )
        )
        await self._publish(
            MeshView(
                version=self._directory.next_version,
                mesh=self._config.mesh.name,
                model_path=str(self._config.model.path),
                fingerprint=fingerprint(self._config.model.path),
                router_mode=self._config.router.mode,
                soft_deadline_s=self._config.router.soft_deadline_s,
                call_deadline_s=self._config.router.call_deadline_s,
                expert_wait_s=self._config.router.expert_wait_s,
                epoch=plan.epoch,
                shards=tuple(_peer(shard) for shard in self._parts.shards),
                rows_between_nodes=RowCoding[self._config.router.rows_between_nodes.name],
            )
        )

    def _check_checkpoints(self) -> None:
        """Raises UserError where a shard's node has another checkpoint than this one."""
        path = self._config.model.path
        own = (f"the controller on {node_id().partition('/')[0]}", fingerprint(path))
        found = [(f"{s.id} on {s.node}", s.info["fingerprint"]) for s in self._parts.shards]
        check_same(str(path), [own, *found])

    async def _capacities(self) -> "list[ShardCapacity]":
        """Memory of the shards and cost of their calls: the config's, else what they measured."""
        from orchestrator.mesh_plan import ShardCapacity

        memory = memory_of_shards([self._memory_of(shard) for shard in self._parts.shards])
        return [
            ShardCapacity(
                shard.id, memory_bytes, await self._cost_of(shard), shard.info["bytes_per_expert"]
            )
            for shard, memory_bytes in zip(self._parts.shards, memory, strict=True)
        ]

    def _memory_of(self, shard: Component) -> ShardMemory:
        pool, info = self._pool_of(shard), shard.info
        return ShardMemory(info["node"], pool.device == "cpu", info["free_bytes"], pool.memory)

    async def _cost_of(self, shard: Component) -> DeviceCost:
        speed = self._pool_of(shard).speed
        if speed is not None:
            return TYPICAL_COST.scaled(speed)
        timeout_s = self._config.controller.shard_start_timeout_s
        cost: DeviceCost = await self._watch.must(shard, shard.handle.measure.remote(), timeout_s)
        return cost

    def _pool_of(self, shard: Component) -> PoolConfig:
        assert shard.pool is not None
        return self._config.pools[shard.pool]

    async def _start_routers(self) -> None:
        """One router on the controller's node; engines elsewhere reach it over TCP."""
        from actors.router.router import RouterConfig

        self._parts.phase = ("Start the router", "")
        assert self._parts.view is not None
        config = RouterConfig(
            id="router-0",
            directory=str(self._directory.addresses[-1]),
            listen=(self._run_dir.socket("router-0"), self._tcp_listen),
            log_level=self._config.logging.level,
            security=tcp_security(self._config),
        )
        router = Component(
            "router-0",
            ComponentKind.ROUTER,
            cluster.start_router(config, self._secret, self._shares.spin_us),
        )
        self._parts.routers.append(router)
        router.info = await self._watch.must(
            router, router.handle.start.remote(), self._config.controller.shard_start_timeout_s
        )
        await self._publish(
            self._parts.view.with_routers((_peer(router),), self._directory.next_version)
        )

    async def _publish(self, view: MeshView) -> None:
        self._parts.view = view
        await self._directory.publish(view)

    async def _start_engines(self) -> None:
        settings = self._config.engines
        for number in range(settings.replicas):
            config = engine_config(
                self._config,
                f"engine-{number}",
                self._directory.addresses[-1],
                self._secret,
                self._run_dir,
            )
            handle = cluster.start_engine(
                config, settings.resources, self._shares, ENGINE_CONCURRENCY
            )
            self._parts.engines.append(Component(config.engine_id, ComponentKind.ENGINE, handle))
        timeout_s = self._config.controller.engine_start_timeout_s
        demand = engine_demand(self._config)
        call_timeout_s = self._config.controller.call_timeout_s
        await _all(self._start_of(engine, timeout_s, demand) for engine in self._parts.engines)
        await _all(self._watch.look_at(engine, call_timeout_s) for engine in self._parts.engines)


def tcp_security(config: MeshConfig) -> TcpSecurity:
    """Of connections between nodes; a private session has none."""
    router = config.router
    if config.cluster.ray_address is None:
        return HANDSHAKE_ONLY
    return TcpSecurity(router.between_nodes_security, router.tls_certificate, router.tls_key)


async def _all(calls: Iterable[Awaitable[Any]]) -> None:
    await asyncio.gather(*calls)


async def _together(*works: Coroutine[Any, Any, None]) -> None:
    """Run all; the first that fails ends the others and is raised."""
    tasks = [asyncio.create_task(work) for work in works]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()


def _peer(component: Component) -> Peer:
    return Peer(
        component.id,
        component.info["incarnation"],
        component.info["node"],
        tuple(parse_address(text) for text in component.info["addresses"]),
        component.cost,
    )
