"""The controller: starts a mesh, holds its plan epoch, answers what it is doing.

A detached named Ray actor. This first version brings a mesh up and down and watches it; what to do
about a changed load or a dead component is decided elsewhere and will act through the same methods.
The data plane does not need it: dispatchers keep serving with the last epoch they were told.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError

from actors.listening import ready_to_listen, remove_sockets
from actors.wire.address import Address
from actors.wire.node import node_id
from orchestrator import cluster
from orchestrator.bring_up import BringUp, tcp_security
from orchestrator.components import Component, MeshParts
from orchestrator.config.schema import MeshConfig
from orchestrator.config.serving import RouterMode
from orchestrator.directory import Directory
from orchestrator.errors import UserError
from orchestrator.logging_setup import set_up_logging
from orchestrator.ray_session import node_logs
from orchestrator.readiness import readiness
from orchestrator.root_cause import cause_of
from orchestrator.run_dir import RunDir
from orchestrator.status import ComponentKind, ComponentState, ComponentStatus, MeshStatus
from orchestrator.watch import Watch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

FIRST_TERM = 1
"""Term of this mesh's views; there is one controller in the life of a mesh."""


class Controller:
    """One mesh. Every method is a coroutine of the actor's one event loop."""

    def __init__(self, config: MeshConfig, run_dir: RunDir, secret: bytes) -> None:
        set_up_logging(config.logging, cluster.CONTROLLER)
        self._config = config
        self._run_dir = run_dir
        self._secret = secret
        self._private = config.cluster.ray_address is None
        self._parts = MeshParts()
        self._directory = Directory(secret, FIRST_TERM, tcp_security(config))
        settings = config.controller
        self._watch = Watch(settings.probe_interval_s, settings.suspect_after_probes, node_logs())
        self._watching: asyncio.Task[None] | None = None
        self._stopping = False

    # -- life

    async def start(self) -> str:
        """Bring the mesh up: shards, plan, experts, router, engines. Returns the kernels in use.

        On failure the mesh is left as far as it got, for `status`; the caller stops it.

        Raises:
            UserError: the model, the memory or a component's start will not do.
        """
        listen = [self._run_dir.socket("directory")]
        if not self._private:
            listen.append("tcp:node:0")
        try:
            await self._directory.listen(ready_to_listen(listen))
        except ValueError as error:
            raise UserError(
                str(error), "set router.tls_certificate and tls_key to PEM files on every node"
            ) from None
        self._watching = asyncio.create_task(self._watch.run(lambda: self._parts.all))
        await BringUp(
            self._config, self._run_dir, self._secret, self._parts, self._watch, self._directory
        ).run()
        self._parts.phase = ("Serve", "")
        return "; ".join(sorted({str(shard.info["kernel"]) for shard in self._parts.shards}))

    async def stop(self) -> None:
        """Let requests under way finish, then end every component. Idempotent."""
        if self._stopping:
            return
        self._stopping = True
        self._parts.phase = ("Stop", "waiting for requests under way")
        if self._watching is not None:
            self._watching.cancel()
        drain_s = self._config.controller.drain_timeout_s
        serving = [c for c in self._parts.engines if c.state is ComponentState.READY]
        await self._all(self._bounded(c.handle.drain.remote(drain_s), drain_s + 1) for c in serving)
        for component in self._parts.all:
            component.state = ComponentState.DRAINING
        if not self._private:
            # On other nodes their sockets go only if they remove them; here the run folder goes.
            await self._all(self._bounded(c.handle.stop.remote(), 15.0) for c in self._parts.all)
        for component in self._parts.all:
            cluster.kill(component.handle)
        await self._directory.close()
        remove_sockets([self._run_dir.socket("directory")])

    # -- questions

    async def phase(self) -> tuple[str, str]:
        """(step of the start-up, how far it is), for people."""
        return self._parts.phase

    async def status(self) -> dict[str, Any]:
        """`MeshStatus` as JSON values."""
        ready, reason = self._readiness()
        return MeshStatus(
            mesh=self._config.mesh.name,
            model=self._config.model.name,
            address=str(self._directory_address) if self._directory.addresses else "",
            ready=ready,
            reason=reason,
            epoch=self._parts.view.epoch.number if self._parts.view else 0,
            router_mode=self._config.router.mode,
            components=[self._own_status(), *(c.status() for c in self._parts.all)],
        ).model_dump(mode="json")

    async def engines(self) -> list[dict[str, str]]:
        """id, state and actor name of each engine, for the gateway."""
        return [
            {"id": c.id, "state": c.state, "actor_name": cluster.engine_actor_name(c.id)}
            for c in self._parts.engines
        ]

    async def expert_load(self) -> dict[str, Any]:
        """`ExpertLoad` as JSON values. A shard that is dead or silent counts as zero."""
        from orchestrator.expert_load import sum_load

        spec = self._parts.spec
        assert spec is not None
        ready = [s for s in self._parts.shards if s.state is ComponentState.READY]
        answers = await asyncio.gather(*map(self._load_of, ready))
        by_shard = {
            shard.id: counts
            for shard, counts in zip(ready, answers, strict=True)
            if counts is not None
        }
        return sum_load(self._config.model.name, spec.layers, by_shard, spec.num_experts).to_json()

    async def _load_of(self, shard: Component) -> "NDArray[np.int64] | None":
        try:
            async with asyncio.timeout(self._config.controller.call_timeout_s):
                counts: NDArray[np.int64] = await shard.handle.load_counts.remote()
                return counts
        except (TimeoutError, RayError) as error:
            log.warning("no load counts from shard %s: %s", shard.id, error)
            return None

    def _readiness(self) -> tuple[bool, str]:
        if self._stopping:
            return False, "the mesh is stopping"
        return readiness(
            self._parts.all,
            self._parts.view.epoch if self._parts.view else None,
            needs_router=self._config.router.mode is RouterMode.ACTOR,
        )

    def _own_status(self) -> ComponentStatus:
        step, detail = self._parts.phase
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
