"""The controller: one mesh's control plane, as a detached named Ray actor.

It decides nothing itself: the core (`orchestrator.control`) does, the runner acts, and what they
need of the world is in `orchestrator.runtime`. The data plane does not need it: dispatchers keep
serving with the last epoch they were told. If its process dies Ray starts another, which reads the
journal, finds the mesh's processes by their names, asks them what they hold, and goes on.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from actors.descriptions import ShardDescription
from actors.experts.families import read_expert_spec
from actors.experts.fingerprint import fingerprint
from actors.listening import ready_to_listen, remove_sockets
from actors.origin import code_digest
from actors.wire.address import Address
from actors.wire.node import node_id
from orchestrator import cluster
from orchestrator.actor_names import ActorName
from orchestrator.api.verbs import UPGRADE
from orchestrator.api.views import cluster_view, placement_view
from orchestrator.clients.mesh import EngineInfo
from orchestrator.config.schema import MeshConfig
from orchestrator.config.state_dir import state_dir
from orchestrator.control.events import ComponentDied, EnginesLoad, LoadSeen
from orchestrator.control.journal import JournalError
from orchestrator.control.lifecycle import Kind
from orchestrator.control.runner import Runner
from orchestrator.control.state import Intent, State
from orchestrator.directory import Directory
from orchestrator.errors import UserError
from orchestrator.expert_load import sum_load
from orchestrator.logging_setup import set_up_logging
from orchestrator.ray_process import node_logs
from orchestrator.run_dir import RunDir
from orchestrator.runtime.components import RayComponents
from orchestrator.runtime.directory_addresses import to_listen, to_tell
from orchestrator.runtime.ending import end_components, end_the_rest
from orchestrator.runtime.engine_load import engine_load
from orchestrator.runtime.followers import DirectoryFollowers
from orchestrator.runtime.intent import first_state, with_directory, with_origins, with_pools
from orchestrator.runtime.load_collector import LoadCollector
from orchestrator.runtime.load_file import load_file, read_ended, write_ended
from orchestrator.runtime.mesh import Mesh, is_private, node_listen, tcp_security
from orchestrator.runtime.opened_journal import opened_journal
from orchestrator.runtime.process import ask_all
from orchestrator.runtime.progress import Step, check_can_start, is_up, readiness, step_of
from orchestrator.runtime.rebuilt import rebuilt_intent
from orchestrator.runtime.room import why_no_room
from orchestrator.runtime.status import STATES, component_statuses
from orchestrator.status import ComponentKind, ComponentState, ComponentStatus, MeshStatus
from orchestrator.traffic_load import KindLoad, TrafficLoad
from orchestrator.upgrade.effects import setups_of
from orchestrator.upgrade.taking_up import (
    check_may_join,
    files_of,
    keep_running,
    take_up,
    wanted_config,
    why_not_yet,
)

log = logging.getLogger(__name__)

LOOK_S = 0.05
"""Pause between two looks at how far a start is."""
LOAD_WINDOW_S = 1.0
START: Step = ("Start the controller", "")
SET_UP_TIMEOUT_S = 120.0
GIVE_WAY_S = 0.2
"""Time for the answer to leave before the process ends."""
RETRY_S = 5.0
"""Pause between two attempts to go on with a mesh."""


class Controller:
    """One mesh. Every method is a coroutine of the actor's one event loop."""

    def __init__(self, config: str, run_dir: RunDir, secret: bytes) -> None:
        """config: as JSON, which a later version reads too."""
        again = ray.get_runtime_context().was_current_actor_reconstructed
        given = MeshConfig.model_validate_json(config)
        self._taken = take_up(given, str(run_dir.path), again=again)
        self._config = self._taken.config
        set_up_logging(self._config.logging, cluster.CONTROLLER)
        self._run_dir = run_dir
        self._secret = secret
        self._beginning: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[None] | None = None
        self._loads: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._directory: Directory | None = None
        self._components: RayComponents | None = None
        self._followers: DirectoryFollowers | None = None
        self._runner: Runner | None = None
        self._collector: LoadCollector | None = None
        self._traffic: TrafficLoad | None = None
        self._problem = ""
        if again:
            log.warning("started again after the death of its process")
            # Not by a call to itself: Ray loses one in twenty to an actor it is starting again.
            self._recovering = asyncio.create_task(self._recover())

    # -- life

    async def start(self) -> str:
        """Bring the mesh up, or find it up; returns the expert kernels in use. Idempotent.

        On failure the mesh is left as far as it got, for `status`; the caller stops it.

        Raises:
            UserError: the model, the memory or a component's start will not do.
        """
        await self._begin()
        assert self._components is not None
        while not is_up(self._state):
            if self._components.refusals:
                raise self._components.refusals[0]
            check_can_start(self._state)
            await asyncio.sleep(LOOK_S)
        said = (process.said for process in self._components)
        return "; ".join(sorted({s.kernel for s in said if isinstance(s, ShardDescription)}))

    async def _recover(self) -> None:
        """Go on with a mesh that another process of this actor began.

        Where that fails this process ends after a pause, and the one that Ray starts then tries
        again: the reason may have gone, such as a full disk.
        """
        try:
            async with asyncio.timeout(SET_UP_TIMEOUT_S):
                await self._begin()
        except Exception as error:
            self._problem = f"cannot go on with the mesh: {str(error) or type(error).__name__}"
            log.exception("cannot go on with the mesh; the next attempt is in %g s", RETRY_S)
            if self._taken.wanted is not None:
                files_of(self._config).refuse(self._taken.wanted, str(error))
            await asyncio.sleep(RETRY_S)
            if self._stopping is None:
                os._exit(1)

    async def stop(self) -> None:
        """Let requests under way finish, then end every component. Idempotent."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def _begin(self) -> None:
        if self._beginning is None:
            self._beginning = asyncio.create_task(self._set_up())
        await asyncio.shield(self._beginning)

    async def _set_up(self) -> None:
        """Read the journal, open the directory, run the core."""
        path, session = self._config.model.path, str(self._run_dir.path)
        predicts = self._config.engines.predicts
        spec = await asyncio.to_thread(read_expert_spec, path, predictors=predicts)
        mark = await asyncio.to_thread(fingerprint, path)
        if self._recovering is not None:
            check_may_join(self._config, session, mark)
        alive = await asyncio.to_thread(cluster.living_actors)
        try:
            journal, before, damaged = await opened_journal(self._config)
        except JournalError as error:
            raise UserError(str(error)) from error
        if damaged and alive:
            said = await ask_all(alive)
            before = rebuilt_intent(self._config, spec, mark, alive, said, time.time())
        now_s = time.monotonic()
        state = first_state(self._config, spec, mark, before, alive, node_id(), now_s)
        state = with_pools(state, self._config, self._taken.added)
        state = with_origins(state, setups_of(self._config), code_digest())
        term = state.intent.term
        model, kinds = self._config.model.name, self._config.gateway.traffic_kinds
        self._traffic = TrafficLoad(model, spec.layers, spec.num_experts, kinds)
        security, heard = tcp_security(self._config), self._traffic.add
        self._directory = Directory(self._secret, term, security, heard)
        addresses = await self._listen(self._directory, state.intent.directory)
        mesh = Mesh(self._config, self._run_dir, self._secret, spec, mark, addresses[-1])
        self._components = RayComponents(mesh, term, node_logs(), self._tell_death)
        if state.intent.epoch is not None:
            self._components.placed.set()
        self._followers = DirectoryFollowers(self._directory, mesh, self._components)
        self._runner = Runner(
            with_directory(state, addresses),
            journal,
            self._components,
            self._followers,
            probe_interval_s=self._config.controller.probe_interval_s,
        )
        shape = (len(spec.layers), spec.num_experts)
        timeout_s = self._config.controller.call_timeout_s
        kept = load_file(state_dir(self._config.cluster), self._config.mesh.name)
        # Before the first epoch this mesh has not served yet: the file is of one that is over.
        ended = {} if state.intent.epoch is None else read_ended(kept, shape)
        keep = partial(write_ended, kept)
        self._collector = LoadCollector(shape, timeout_s, time.monotonic, ended, keep)
        await self._runner.start()
        keep_running(self._config, session, code_digest(), mark)
        self._loads = asyncio.create_task(self._collect_loads())

    async def _listen(self, directory: Directory, before: Iterable[str]) -> list[Address]:
        """Open the directory where dispatchers know it from before, if they do."""
        tcp = None if is_private(self._config) else node_listen(self._config)
        texts = to_listen(before, self._run_dir.socket("directory"), tcp)
        try:
            await directory.listen(ready_to_listen(texts))
        except ValueError as error:
            raise UserError(
                str(error), "set router.tls_certificate and tls_key to PEM files on every node"
            ) from None
        directory.addresses = to_tell(directory.addresses, self._config.cluster.head_host)
        return directory.addresses

    async def _stop(self) -> None:
        if self._beginning is not None:
            with contextlib.suppress(Exception):  # then there is less to stop
                await self._beginning
        if self._loads is not None:
            self._loads.cancel()
        if self._runner is not None and self._components is not None:
            await self._runner.halt()
            await end_components(self._components, self._config, self._state)
            try:
                await self._runner.close("asked for: every process is ended")
            except JournalError as error:
                log.warning("while stopping: %s", error)
            files_of(self._config).remove()
        await asyncio.to_thread(end_the_rest)
        if self._directory is not None:
            await self._directory.close()
            remove_sockets([self._run_dir.socket("directory")])

    # -- what the core is told

    def _tell_death(self, name: ActorName, why: str) -> None:
        if self._runner is not None:
            self._runner.tell(lambda now_s: ComponentDied(now_s, name.id, name.generation, why))

    async def _collect_loads(self) -> None:
        """Every window, what experts and engines were asked for."""
        assert self._runner is not None
        assert self._components is not None
        assert self._collector is not None
        while True:
            await asyncio.sleep(LOAD_WINDOW_S)
            try:
                window = await self._collector.collect(self._state, self._components)
            except Exception:  # one odd answer must not end the telemetry
                log.exception("the load could not be collected")
                continue
            counts, busy = window.counts.astype("float64"), window.busy
            self._runner.tell(lambda now_s, c=counts, b=busy: LoadSeen(now_s, c, busy=b))  # type: ignore[misc]
            load = engine_load(process.said for process in self._components)
            self._runner.tell(lambda now_s, e=load: EnginesLoad(now_s, e))  # type: ignore[misc]

    # -- questions

    async def phase(self) -> Step:
        """(step of the start-up, how far it is), for people."""
        if self._stopping is not None:
            return "Stop", "waiting for requests under way"
        return step_of(self._state) if self._runner else START

    async def status(self) -> dict[str, Any]:
        """`MeshStatus` as JSON values."""
        ready, reason = self._readiness()
        state, epoch = self._state, self._state.intent.epoch
        said = self._components.said if self._components else lambda _id, _generation: None
        directory = self._directory.addresses if self._directory else []
        return MeshStatus(
            mesh=self._config.mesh.name,
            model=self._config.model.name,
            address=str(directory[-1]) if directory else "",
            ready=ready,
            reason=reason,
            epoch=epoch.id.number if epoch else 0,
            router_mode=self._config.router.mode,
            components=[
                self._own_status(),
                *component_statuses(state, self._config.pools, said),
            ],
        ).model_dump(mode="json")

    async def engines(self) -> list[EngineInfo]:
        """Every engine, for gateway and batch runner.

        Raises:
            RuntimeError: this process does not know them yet; those that its predecessor told of
                serve on.
        """
        if self._recovering is not None and not self._state.facts.components:
            raise RuntimeError("the controller has just been started again")
        found = []
        for id, component in self._state.facts.components.items():
            place = self._state.intent.places.get(id)
            if place is not None and place.kind is Kind.ENGINE:
                name = ActorName(Kind.ENGINE, id, component.generation)
                found.append(EngineInfo(id, STATES[component.life], str(name)))
        return found

    async def expert_load(self) -> dict[str, Any]:
        """`ExpertLoad.to_arrays`: since the mesh began."""
        assert self._collector is not None
        assert self._traffic is not None
        keys = self._state.intent.keys
        layers = tuple(sorted({key.group for key in keys}))
        experts = len(keys) // len(layers)
        load = sum_load(self._config.model.name, layers, self._collector.totals, experts)
        return replace(load, traffic=self._traffic.tokens).to_arrays()

    async def traffic_load(self, kind: str, content: str | None) -> KindLoad | None:
        """Of one kind of traffic, and of one content if any is named; None: there was none."""
        assert self._traffic is not None
        return self._traffic.of(kind, content)

    async def view(self) -> dict[str, Any]:
        """`ClusterView` as JSON values."""
        assert self._runner is not None
        pids = {p.name.id: p.said.pid for p in self._components or () if p.said is not None}
        view = partial(
            cluster_view,
            self._state,
            time.monotonic(),
            mesh=self._config.mesh.name,
            model=self._config.model.name,
            refuses=self._runner.problem,
            pids=pids,
            reports=self._followers.reports() if self._followers else None,
        )
        return await asyncio.to_thread(lambda: view().model_dump(mode="json"))

    async def placement(self) -> dict[str, Any]:
        """`PlacementView` as JSON values, made in a thread: it counts every copy."""
        state = self._state
        return await asyncio.to_thread(lambda: placement_view(state).model_dump(mode="json"))

    async def history(self, after: int = 0, limit: int = 100) -> list[dict[str, object]]:
        """See `Journal.history`."""
        return self._runner.history(after, limit) if self._runner else []

    async def ask(
        self, verb: str, target: str = "", number: int = 0, dry_run: bool = False
    ) -> tuple[bool, str]:
        """See `Runner.ask`."""
        if self._runner is None or self._stopping is not None:
            return False, "the mesh is starting or stopping: ask again when it serves"
        if verb == UPGRADE:
            return await self._give_way(dry_run=dry_run)
        return await self._runner.ask(verb, target, number, dry_run=dry_run)

    # -- inside

    async def _give_way(self, *, dry_run: bool) -> tuple[bool, str]:
        """End this process, so that Ray starts another: with the code that is installed then and
        the config that `expertmesh upgrade` has put into `state_dir`."""
        why = why_not_yet(self._config, str(self._run_dir.path), self._state.intent)
        wanted = wanted_config(self._config)
        if not why and wanted is not None:
            why = await why_no_room(wanted)
        if why:
            return False, why
        if not dry_run:
            log.warning("gives way to a controller with the installed code and a new config")
            asyncio.get_running_loop().call_later(GIVE_WAY_S, os._exit, 1)
        return True, "the controller gives way to one with the installed code and the new config"

    @property
    def _state(self) -> State:
        return self._runner.state if self._runner else State(intent=Intent())

    def _readiness(self) -> tuple[bool, str]:
        if self._stopping is not None:
            return False, "the mesh is stopping"
        if self._problem:
            return False, f"the controller {self._problem}"
        return readiness(self._state)

    def _own_status(self) -> ComponentStatus:
        step, detail = step_of(self._state) if self._runner else START
        detail = self._problem or detail
        state = ComponentState.READY if self._runner else ComponentState.STARTING
        return ComponentStatus(
            id="controller",
            kind=ComponentKind.CONTROLLER,
            node=node_id().partition("/")[0],
            pid=os.getpid(),
            state=ComponentState.DRAINING if self._stopping is not None else state,
            detail=f"{step}: {detail}" if detail else step,
        )
