"""The controller: starts a mesh, holds its plan epoch, answers what it is doing.

A detached named Ray actor. This first version brings a mesh up and down and watches it; what to do
about a changed load or a dead component is decided elsewhere and will act through the same methods.
The data plane does not need it: dispatchers keep serving with the last epoch they were told.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable
from typing import Any

from ray.exceptions import RayActorError, RayError

from actors.dispatch.mesh_view import MeshView, Peer
from actors.dispatch.subscription import ADDRESS_VARIABLE, SECRET_VARIABLE
from actors.engine.config import EngineConfig
from actors.experts.families import read_expert_spec
from actors.experts.fingerprint import fingerprint
from actors.experts.spec import ExpertSpec
from actors.listening import ready_to_listen
from actors.process import start_logging
from actors.router import RouterConfig
from actors.shard import ShardConfig
from actors.wire.address import parse_address
from actors.wire.node import node_id
from orchestrator import cluster
from orchestrator.components import Component
from orchestrator.config.pools import PoolConfig
from orchestrator.config.schema import MeshConfig
from orchestrator.config.serving import RouterMode
from orchestrator.directory import Directory
from orchestrator.errors import UserError
from orchestrator.mesh_plan import ShardCapacity, plan_mesh
from orchestrator.readiness import readiness
from orchestrator.run_dir import RunDir
from orchestrator.status import ComponentKind, ComponentState, ComponentStatus, MeshStatus

log = logging.getLogger(__name__)

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
        self._directory = Directory(secret)
        self._shards: list[Component] = []
        self._routers: list[Component] = []
        self._engines: list[Component] = []
        self._watch: asyncio.Task[None] | None = None
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
        await self._directory.listen(ready_to_listen(listen))
        self._watch = asyncio.create_task(self._watch_components())
        await self._start_shards()
        await self._place_experts()
        if self._config.router.mode is RouterMode.ACTOR:
            await self._start_routers()
        await self._start_engines()
        self._phase = ("Serve", "")
        return "; ".join(sorted({str(shard.info["kernel"]) for shard in self._shards}))

    async def stop(self) -> None:
        """Drain the engines, then end every component. Idempotent."""
        if self._stopping:
            return
        self._stopping = True
        self._phase = ("Stop", "draining")
        if self._watch is not None:
            self._watch.cancel()
        drain_s = self._config.controller.drain_timeout_s
        await self._all(
            self._bounded(c.handle.drain.remote(drain_s), drain_s + 1) for c in self._engines
        )
        for component in [*self._engines, *self._routers, *self._shards]:
            component.state = ComponentState.DRAINING
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
            address=str(self._directory.addresses[0]) if self._directory.addresses else "",
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
            node=node_id(),
            pid=os.getpid(),
            state=ComponentState.DRAINING if self._stopping else ComponentState.READY,
            detail=f"{step}: {detail}" if detail else step,
        )

    # -- bringing up

    async def _start_shards(self) -> None:
        self._phase = ("Start expert shards", "")
        for name, pool in self._config.pools.items():
            for number in range(pool.shards):
                self._shards.append(self._new_shard(f"{name}-{number}", name, pool))
        started = 0

        async def start(shard: Component) -> None:
            nonlocal started
            shard.info = await self._must(
                shard, shard.handle.start.remote(), self._config.controller.shard_start_timeout_s
            )
            started += 1
            self._phase = ("Start expert shards", f"{started} of {len(self._shards)}")

        await asyncio.gather(*map(start, self._shards))

    def _new_shard(self, shard_id: str, pool_name: str, pool: PoolConfig) -> Component:
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
        )
        handle = cluster.start_shard(config, pool, self._secret)
        return Component(
            shard_id, ComponentKind.SHARD, handle, pool=pool_name, emulated=pool.emulated
        )

    @property
    def _tcp_listen(self) -> str:
        # A private session is one machine: nothing needs to be reachable from outside.
        return "tcp:127.0.0.1:0" if self._private else "tcp:node:0"

    async def _place_experts(self) -> None:
        """Plan the first epoch, load it, tell the dispatchers."""
        assert self._spec is not None
        self._phase = ("Place experts", "")
        capacities = [await self._capacity(shard) for shard in self._shards]
        for shard, capacity in zip(self._shards, capacities, strict=True):
            shard.speed = capacity.speed
        plan = plan_mesh(self._spec, capacities, self._config.placement.redundant_slots, number=1)
        log.info("plan epoch 1: balance %.3f, %s", plan.balance, plan.reason)
        self._phase = ("Load experts", "")
        await asyncio.gather(
            *(
                self._must(
                    shard,
                    shard.handle.load.remote(plan.epoch.slots_of(number)),
                    self._config.controller.shard_start_timeout_s,
                )
                for number, shard in enumerate(self._shards)
            )
        )
        await self._publish(
            MeshView(
                self._config.mesh.name,
                str(self._config.model.path),
                fingerprint(self._config.model.path),
                self._config.router.mode,
                self._config.router.call_deadline_s,
                self._config.router.expert_wait_s,
                plan.epoch,
                tuple(_peer(shard) for shard in self._shards),
            )
        )

    async def _capacity(self, shard: Component) -> ShardCapacity:
        """Memory and speed of a shard: the config's where it says, else what it measured."""
        assert shard.pool is not None
        pool = self._config.pools[shard.pool]
        memory = pool.memory
        if memory is None:
            here = [s for s in self._shards if s.info["node"] == shard.info["node"]]
            sharing = sum(1 for s in here if s.pool and self._config.pools[s.pool].device == "cpu")
            memory = shard.info["free_bytes"] // (sharing if pool.device == "cpu" else 1)
        speed = pool.speed
        if speed is None:
            speed = await self._must(
                shard,
                shard.handle.measure.remote(),
                self._config.controller.shard_start_timeout_s,
            )
        return ShardCapacity(shard.id, memory, speed, shard.info["bytes_per_expert"])

    async def _start_routers(self) -> None:
        """One router on the controller's node; engines elsewhere reach it over TCP."""
        self._phase = ("Start the router", "")
        assert self._view is not None
        config = RouterConfig(
            id="router-0",
            directory=str(self._directory.addresses[0]),
            listen=(self._run_dir.socket("router-0"), self._tcp_listen),
            log_level=self._config.logging.level,
        )
        router = Component(
            "router-0", ComponentKind.ROUTER, cluster.start_router(config, self._secret)
        )
        self._routers.append(router)
        router.info = await self._must(
            router, router.handle.start.remote(), self._config.controller.shard_start_timeout_s
        )
        await self._publish(self._view.with_routers((_peer(router),)))

    async def _publish(self, view: MeshView) -> None:
        self._view = view
        await self._directory.publish(view)

    async def _start_engines(self) -> None:
        settings = self._config.engines
        self._phase = ("Load the engine", f"{settings.replicas} of vLLM")
        flags = dict(settings.vllm)
        if self._config.model.max_model_len is not None:
            flags["max_model_len"] = self._config.model.max_model_len
        for number in range(settings.replicas):
            config = EngineConfig(
                engine_id=f"engine-{number}",
                model=str(self._config.model.path),
                served_model_name=self._config.model.name,
                flags=flags,
                cpu_kv_cache_gib=settings.kv_cache_gib,
                environment={
                    ADDRESS_VARIABLE: str(self._directory.addresses[0]),
                    SECRET_VARIABLE: self._secret.decode(),
                    # Threads are ours to place: shards share the cores.
                    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                    # Its sockets belong into our folder, which goes when the mesh goes.
                    "VLLM_RPC_BASE_PATH": str(self._run_dir.path),
                },
            )
            handle = cluster.start_engine(config, settings.threads, ENGINE_CONCURRENCY)
            self._engines.append(Component(config.engine_id, ComponentKind.ENGINE, handle))
        timeout_s = self._config.controller.engine_start_timeout_s
        await asyncio.gather(
            *(
                self._must(engine, engine.handle.start.remote(), timeout_s)
                for engine in self._engines
            )
        )
        await asyncio.gather(*map(self._look_at, self._engines))

    # -- watching

    async def _watch_components(self) -> None:
        """Ask every component how it is, for as long as the mesh lives."""
        while True:
            await asyncio.gather(*map(self._look_at, self._components))
            await asyncio.sleep(self._config.controller.probe_interval_s)

    async def _look_at(self, component: Component) -> None:
        if component.state is ComponentState.DEAD:
            return
        try:
            component.hear(
                await asyncio.wait_for(
                    component.handle.status.remote(), self._config.controller.call_timeout_s
                )
            )
        except TimeoutError:
            component.detail = "does not answer"
        except RayActorError as error:
            component.lose(_first_line(error))
        except RayError as error:
            component.detail = _first_line(error)

    async def _must(self, component: Component, answer: Awaitable[Any], timeout_s: float) -> Any:
        """The answer to a call without which the mesh cannot start."""
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            component.lose(f"no answer within {timeout_s:g} s")
        except RayError as error:
            component.lose(_cause(error))
        raise UserError(
            f"{component.kind} {component.id} did not start: {component.detail}",
            f"its log is below {self._run_dir.logs}",
        )

    @staticmethod
    async def _bounded(answer: Awaitable[Any], timeout_s: float) -> None:
        try:
            await asyncio.wait_for(answer, timeout_s)
        except (TimeoutError, RayError) as error:
            log.warning("while stopping: %s", _first_line(error) or "timed out")

    @staticmethod
    async def _all(calls: Any) -> None:
        await asyncio.gather(*calls)


def _peer(component: Component) -> Peer:
    return Peer(
        component.id,
        component.info["node"],
        tuple(parse_address(text) for text in component.info["addresses"]),
        component.speed or 1.0,
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else ""


def _cause(error: RayError) -> str:
    """The last line of what failed inside the actor; Ray puts its traceback before it."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
