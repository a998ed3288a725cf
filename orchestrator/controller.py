"""The controller: starts a mesh, holds its plan epoch, answers what it is doing.

A detached named Ray actor. This first version brings a mesh up and down and watches it; what to do
about a changed load or a dead component is decided elsewhere and will act through the same methods.
The data plane does not need it: dispatchers keep serving with the last epoch they were told.
"""

import asyncio
import importlib
import logging
import os
from collections.abc import Awaitable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError

from actors.dispatch.mesh_view import MeshView, Peer
from actors.experts.families import read_expert_spec
from actors.experts.fingerprint import fingerprint
from actors.experts.spec import ExpertSpec
from actors.listening import ready_to_listen
from actors.process import start_logging
from actors.wire.address import Address, parse_address
from actors.wire.frame import RowCoding
from actors.wire.node import node_id
from actors.wire.security import HANDSHAKE_ONLY, TcpSecurity
from orchestrator import cluster
from orchestrator.components import Component
from orchestrator.config.pools import PoolConfig
from orchestrator.config.schema import MeshConfig
from orchestrator.config.serving import RouterMode
from orchestrator.directory import Directory
from orchestrator.engine_settings import engine_config, loads_beside_shards
from orchestrator.errors import UserError
from orchestrator.readiness import readiness
from orchestrator.root_cause import cause_of
from orchestrator.run_dir import RunDir
from orchestrator.status import ComponentKind, ComponentState, ComponentStatus, MeshStatus
from orchestrator.watch import Watch
from placement.cost_model import TYPICAL_COST

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.mesh_plan import ShardCapacity

log = logging.getLogger(__name__)

FIRST_TERM = 1
"""Term of this mesh's views; there is one controller in the life of a mesh."""
ENGINE_CONCURRENCY = 1024
"""Requests one engine actor may be handed at once; vLLM queues what it does not run."""


class Controller:
    """One mesh. Every method is a coroutine of the actor's one event loop."""

    def __init__(self, config: MeshConfig, run_dir: RunDir, secret: bytes) -> None:
        start_logging(config.logging.level)
        self._config = config
        self._run_dir = run_dir
        self._secret = secret
        self._private = config.cluster.ray_address is None
        self._phase = ("Start the controller", "")
        self._spec: ExpertSpec | None = None
        self._view: MeshView | None = None
        self._directory = Directory(secret, FIRST_TERM, self._tcp_security)
        self._shards: list[Component] = []
        self._routers: list[Component] = []
        self._engines: list[Component] = []
        settings = config.controller
        self._watch = Watch(settings.probe_interval_s, settings.suspect_after_probes, run_dir.logs)
        self._watching: asyncio.Task[None] | None = None
        self._stopping = False

    # -- life

    async def start(self) -> str:
        """Bring the mesh up: shards, plan, experts, router, engines. Returns the kernels in use.

        On failure the mesh is left as far as it got, for `status`; the caller stops it.

        Raises:
            UserError: the model, the memory or a component's start will not do.
        """
        self._spec = read_expert_spec(self._config.model.path)
        listen = [self._run_dir.socket("directory")]
        if not self._private:
            listen.append("tcp:node:0")
        try:
            await self._directory.listen(ready_to_listen(listen))
        except ValueError as error:
            raise UserError(
                str(error), "set router.tls_certificate and tls_key to PEM files on every node"
            ) from None
        self._watching = asyncio.create_task(self._watch.run(lambda: self._components))
        if loads_beside_shards(self._spec):
            await _together(self._start_engines(), self._start_data_plane())
        else:
            await self._start_data_plane()
            await self._start_engines()
        self._phase = ("Serve", "")
        return "; ".join(sorted({str(shard.info["kernel"]) for shard in self._shards}))

    async def stop(self) -> None:
        """Let requests under way finish, then end every component. Idempotent."""
        if self._stopping:
            return
        self._stopping = True
        self._phase = ("Stop", "waiting for requests under way")
        if self._watching is not None:
            self._watching.cancel()
        drain_s = self._config.controller.drain_timeout_s
        serving = [c for c in self._engines if c.state is ComponentState.READY]
        await self._all(self._bounded(c.handle.drain.remote(drain_s), drain_s + 1) for c in serving)
        for component in self._components:
            component.state = ComponentState.DRAINING
        if not self._private:
            # On other nodes their sockets go only if they remove them; here the run folder goes.
            await self._all(self._bounded(c.handle.stop.remote(), 15.0) for c in self._components)
        for component in self._components:
            cluster.kill(component.handle)
        await self._directory.close()

    # -- questions

    async def phase(self) -> tuple[str, str]:
        """(step of the start-up, how far it is), for people."""
        return self._phase

    async def status(self) -> dict[str, Any]:
        """`MeshStatus` as JSON values."""
        ready, reason = self._readiness()
        return MeshStatus(
            mesh=self._config.mesh.name,
            model=self._config.model.name,
            address=str(self._directory_address) if self._directory.addresses else "",
            ready=ready,
            reason=reason,
            epoch=self._view.epoch.number if self._view else 0,
            router_mode=self._config.router.mode,
            components=[self._own_status(), *(c.status() for c in self._components)],
        ).model_dump(mode="json")

    async def engines(self) -> list[dict[str, str]]:
        """id, state and actor name of each engine, for the gateway."""
        return [
            {"id": c.id, "state": c.state, "actor_name": cluster.engine_actor_name(c.id)}
            for c in self._engines
        ]

    async def expert_load(self) -> dict[str, Any]:
        """`ExpertLoad` as JSON values. A shard that is dead or silent counts as zero."""
        from orchestrator.expert_load import sum_load

        assert self._spec is not None
        ready = [s for s in self._shards if s.state is ComponentState.READY]
        answers = await asyncio.gather(*map(self._load_of, ready))
        by_shard = {
            shard.id: counts
            for shard, counts in zip(ready, answers, strict=True)
            if counts is not None
        }
        spec = self._spec
        return sum_load(self._config.model.name, spec.layers, by_shard, spec.num_experts).to_json()

    async def _load_of(self, shard: Component) -> "NDArray[np.int64] | None":
        try:
            async with asyncio.timeout(self._config.controller.call_timeout_s):
                counts: NDArray[np.int64] = await shard.handle.load_counts.remote()
                return counts
        except (TimeoutError, RayError) as error:
            log.warning("no load counts from shard %s: %s", shard.id, error)
            return None

    @property
    def _components(self) -> list[Component]:
        return [*self._shards, *self._routers, *self._engines]

    def _readiness(self) -> tuple[bool, str]:
        if self._stopping:
            return False, "the mesh is stopping"
        return readiness(
            self._components,
            self._view.epoch if self._view else None,
            needs_router=self._config.router.mode is RouterMode.ACTOR,
        )

    def _own_status(self) -> ComponentStatus:
        step, detail = self._phase
        return ComponentStatus(
            id="controller",
            kind=ComponentKind.CONTROLLER,
            node=node_id().partition("/")[0],
            pid=os.getpid(),
            state=ComponentState.DRAINING if self._stopping else ComponentState.READY,
            detail=f"{step}: {detail}" if detail else step,
        )

    @property
    def _directory_address(self) -> Address:
        """Where an engine finds the mesh: TCP in a shared cluster, where it may be elsewhere."""
        return self._directory.addresses[-1]

    # -- bringing up

    async def _start_data_plane(self) -> None:
        """Shards, plan, experts and, in that mode, the router."""
        await self._start_shards()
        await self._place_experts()
        if self._config.router.mode is RouterMode.ACTOR:
            await self._start_routers()
        self._phase = ("Load the engine", "")

    async def _start_shards(self) -> None:
        self._phase = ("Start expert shards", "")
        # Imports torch: seconds in which the engines' calls should go out.
        await asyncio.to_thread(importlib.import_module, "actors.shard")
        for name, pool in self._config.pools.items():
            for number in range(pool.shards):
                self._shards.append(self._new_shard(f"{name}-{number}", name, pool))
        started = 0

        async def start(shard: Component) -> None:
            nonlocal started
            shard.info = await self._watch.must(
                shard, shard.handle.start.remote(), self._config.controller.shard_start_timeout_s
            )
            started += 1
            self._phase = ("Start expert shards", f"{started} of {len(self._shards)}")

        await asyncio.gather(*map(start, self._shards))

    def _new_shard(self, shard_id: str, pool_name: str, pool: PoolConfig) -> Component:
        from actors.shard import ShardConfig

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
            security=self._tcp_security,
        )
        handle = cluster.start_shard(config, pool, self._secret, self._config.router.spin_us)
        return Component(
            shard_id, ComponentKind.SHARD, handle, pool=pool_name, emulated=pool.emulated
        )

    @property
    def _tcp_listen(self) -> str:
        # A private session is one machine: nothing needs to be reachable from outside.
        return "tcp:127.0.0.1:0" if self._private else "tcp:node:0"

    @property
    def _tcp_security(self) -> TcpSecurity:
        """Of connections between nodes; a private session has none."""
        router = self._config.router
        if self._private:
            return HANDSHAKE_ONLY
        return TcpSecurity(router.between_nodes_security, router.tls_certificate, router.tls_key)

    async def _place_experts(self) -> None:
        """Plan the first epoch, load it, tell the dispatchers."""
        from orchestrator.mesh_plan import plan_mesh, relative_speeds

        assert self._spec is not None
        self._phase = ("Place experts", "")
        capacities = [await self._capacity(shard) for shard in self._shards]
        speeds, _ = relative_speeds(self._spec, capacities)
        for shard, capacity, speed in zip(self._shards, capacities, speeds, strict=True):
            shard.cost, shard.speed = capacity.cost, float(speed)
        plan = plan_mesh(self._spec, capacities, self._config.placement.redundant_slots, number=1)
        log.info("plan epoch 1: balance %.3f, %s", plan.balance, plan.reason)
        self._phase = ("Load experts", "")
        await asyncio.gather(
            *(
                self._watch.must(
                    shard,
                    shard.handle.load.remote(plan.epoch.slots_of(number)),
                    self._config.controller.shard_start_timeout_s,
                )
                for number, shard in enumerate(self._shards)
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
                shards=tuple(_peer(shard) for shard in self._shards),
                rows_between_nodes=RowCoding[self._config.router.rows_between_nodes.name],
            )
        )

    async def _capacity(self, shard: Component) -> "ShardCapacity":
        """Memory of a shard and cost of its calls: the config's, else what it measured."""
        from orchestrator.mesh_plan import ShardCapacity

        assert shard.pool is not None
        pool = self._config.pools[shard.pool]
        memory = pool.memory
        if memory is None:
            here = [s for s in self._shards if s.info["node"] == shard.info["node"]]
            sharing = sum(1 for s in here if s.pool and self._config.pools[s.pool].device == "cpu")
            memory = shard.info["free_bytes"] // (sharing if pool.device == "cpu" else 1)
        if pool.speed is not None:
            cost = TYPICAL_COST.scaled(pool.speed)
        else:
            cost = await self._watch.must(
                shard,
                shard.handle.measure.remote(),
                self._config.controller.shard_start_timeout_s,
            )
        return ShardCapacity(shard.id, memory, cost, shard.info["bytes_per_expert"])

    async def _start_routers(self) -> None:
        """One router on the controller's node; engines elsewhere reach it over TCP."""
        from actors.router import RouterConfig

        self._phase = ("Start the router", "")
        assert self._view is not None
        config = RouterConfig(
            id="router-0",
            directory=str(self._directory_address),
            listen=(self._run_dir.socket("router-0"), self._tcp_listen),
            log_level=self._config.logging.level,
            security=self._tcp_security,
        )
        router = Component(
            "router-0",
            ComponentKind.ROUTER,
            cluster.start_router(config, self._secret, self._config.router.spin_us),
        )
        self._routers.append(router)
        router.info = await self._watch.must(
            router, router.handle.start.remote(), self._config.controller.shard_start_timeout_s
        )
        await self._publish(self._view.with_routers((_peer(router),), self._directory.next_version))

    async def _publish(self, view: MeshView) -> None:
        self._view = view
        await self._directory.publish(view)

    async def _start_engines(self) -> None:
        settings = self._config.engines
        for number in range(settings.replicas):
            config = engine_config(
                self._config,
                f"engine-{number}",
                self._directory_address,
                self._secret,
                self._run_dir,
            )
            handle = cluster.start_engine(
                config, settings.threads, ENGINE_CONCURRENCY, self._config.router.spin_us
            )
            self._engines.append(Component(config.engine_id, ComponentKind.ENGINE, handle))
        timeout_s = self._config.controller.engine_start_timeout_s
        await self._all(
            self._watch.must(engine, engine.handle.start.remote(), timeout_s)
            for engine in self._engines
        )
        await self._all(map(self._watch.look_at, self._engines))

    # -- bringing down

    @staticmethod
    async def _bounded(answer: Awaitable[Any], timeout_s: float) -> None:
        try:
            await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            log.warning("while stopping: no answer within %g s", timeout_s)
        except RayError as error:
            log.warning("while stopping: %s", cause_of(error))

    @staticmethod
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
