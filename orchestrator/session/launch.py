"""Run one mesh from this process: start it, serve until a signal, drain, leave nothing behind.

Controller, gateway and batch runner are imported in a thread, while Ray's processes start.

Signals only set an event that every wait here looks at: nothing is interrupted half-way, so what
was started is known at each moment and can be ended.
"""

import importlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable
from functools import partial
from threading import Thread
from typing import Any, TypeVar

import ray
from pydantic import SecretStr
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)

from actors.dispatch.subscription import SECRET_VARIABLE
from orchestrator import cluster
from orchestrator.batch.deploy import batch_settings
from orchestrator.clients.ray_mesh import RayMeshClient
from orchestrator.config.schema import MeshConfig
from orchestrator.config.secrets import Secrets
from orchestrator.errors import UserError
from orchestrator.gateway.auth import digest
from orchestrator.gateway.config import endpoint_url
from orchestrator.gateway.settings import gateway_config
from orchestrator.ray_process import node_logs
from orchestrator.resources import check_room, demands_of
from orchestrator.root_cause import cause_of
from orchestrator.run_dir import RunDir
from orchestrator.session.first_answer import ask_first
from orchestrator.session.guard import SessionGuard
from orchestrator.session.progress import Progress
from orchestrator.session.ray_session import (
    lost_process,
    namespace_of,
    reap_ended,
    start_ray,
    stop_ray,
)
from orchestrator.session.stop_signals import StopRequested, StopSignals
from orchestrator.session.watched_call import call_watched
from orchestrator.status import LOAD_ENGINE

T = TypeVar("T")

log = logging.getLogger(__name__)

IMPORTED_AHEAD = (
    "orchestrator.controller",
    "orchestrator.gateway.deploy",
    "orchestrator.batch.runner_process",
)
"""What is started by Ray later on: about two seconds of a core."""
RUNNER_TIMEOUT_S = 20.0
"""How long "ready" waits for the batch runner, which serving does without."""
POLL_S = 0.1
LOOK_S = 1.0
"""Time between two looks at Ray's own processes while the mesh serves."""
PHASE_TIMEOUT_S = 5.0
MAX_CONTROLLER_LOSSES = 60
"""Failed calls to the controller in one start, with a pause after each; a restart costs a few."""
CONTROLLER_PAUSE_S = 0.5
GATEWAY_START_TIMEOUT_S = 60.0
"""An endpoint that is just being opened can be closed only after that."""
STOP_MARGIN_S = 20.0
"""On top of the drain: time the components have for closing down."""


def run_mesh(config: MeshConfig, progress: Progress) -> int:
    """Start the mesh of `config` and serve until SIGINT or SIGTERM. Returns the exit code.

    Success and failure alike end every process and remove every socket that was started here; after
    a failed start in a private session the run folder with its logs is kept. The error names them.

    Raises:
        UserError: the mesh cannot start as configured.
    """
    run_dir = RunDir.create(config.cluster.temp_dir)
    guard = SessionGuard(run_dir.path) if config.cluster.ray_address is None else None
    try:
        return _run(config, run_dir, guard, progress)
    finally:
        if guard is not None:
            guard.dismiss()


def _run(
    config: MeshConfig, run_dir: RunDir, guard: SessionGuard | None, progress: Progress
) -> int:
    secret = os.environ.get(SECRET_VARIABLE, "") or secrets.token_hex(32)
    with StopSignals() as stop:
        session = _Session(config, run_dir, secret.encode(), stop, guard)
        try:
            session.start(progress)
            session.serve()
        except StopRequested:
            progress.give_up("stopped")
        except UserError as error:
            where = _fail(session, run_dir, progress)
            fix = "; ".join(filter(None, [error.fix, where]))
            raise UserError(error.message, fix) from error
        except BaseException:
            if where := _fail(session, run_dir, progress):
                progress.warn(where)
            raise
        session.stop(progress)
        run_dir.remove()
    return 0


def _fail(session: "_Session", run_dir: RunDir, progress: Progress) -> str:
    """Stop and keep the logs; returns where they are, "" where there are none."""
    progress.give_up()
    where = session.where_logs_are()
    session.stop(progress)
    if where and run_dir.logs.exists():
        run_dir.keep_only_logs()
    else:  # a shared cluster has them
        run_dir.remove()
    return where


class _Session:
    """Ray, controller and gateway of one mesh, in the order they come and go."""

    def __init__(
        self,
        config: MeshConfig,
        run_dir: RunDir,
        secret: bytes,
        stop: StopSignals,
        guard: SessionGuard | None,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._secret = secret
        self._stop = stop
        self._private = guard is not None
        self._spared = () if guard is None else (guard.pid,)
        self._controller: ActorHandle | None = None
        self._gateway: ray.ObjectRef[str] | None = None
        self._batch_runner: ray.ObjectRef[bool] | None = None
        """Done once the batch runner's process is up."""

    def start(self, progress: Progress) -> None:
        """Everything up to the first answered request.

        Raises:
            StopRequested: a signal came.
            UserError: something does not start; says what and why.
        """
        progress.step("Start Ray")
        Thread(target=_import_ahead, name="import-ahead", daemon=True).start()
        start_ray(self._config, self._run_dir)
        self._stop.install()  # Ray puts its own SIGTERM handler in place
        self._stop.check()
        progress.done()
        running = None if self._private else self._watched(cluster.find_controller)
        if running is not None and not self._config.cluster.take_over:
            raise UserError(
                f"a mesh named {self._config.mesh.name} already runs in that Ray cluster",
                "choose another mesh.name, stop it first, or set cluster.take_over",
            )
        self._check_room()
        self._controller = running or self._watched(self._start_controller)
        started: ray.ObjectRef[str] = self._controller.start.remote()
        # The endpoint opens while the model loads; until then /health says that it does.
        self._gateway = self._watched(self._open_gateway)
        self._follow_start(started, progress)
        progress.step("Open the endpoint")
        self._await_gateway()
        gateway = self._config.gateway
        url = endpoint_url(gateway.host, gateway.port, gateway.route_prefix)
        self._await_batch_runner()
        keys = [key.get_secret_value() for key in Secrets().api_keys]
        ask_first(url, self._config.model.name, keys[0] if keys else None)
        progress.done()
        progress.ready(url)

    def _check_room(self) -> None:
        """Raises UserError where the nodes lack what shards and engines ask for."""
        # Nodes may join a shared cluster; a private one is all there is.
        deadline_s = time.monotonic()
        if not self._private:
            deadline_s += self._config.cluster.room_timeout_s
        while True:
            try:
                resources = self._watched(cluster.node_resources)
                check_room(demands_of(self._config), resources)
                return
            except UserError:
                if time.monotonic() >= deadline_s:
                    raise
            self._stop.wait(POLL_S)
            self._stop.check()

    def serve(self) -> None:
        """Return when a signal comes. Raises UserError if Ray itself is lost."""
        while not self._stop.wait(LOOK_S):
            self._check_ray()
            if self._private:
                reap_ended(self._spared)

    def _watched(self, call: Callable[[], T]) -> T:
        """What `call` returns, which waits inside Ray. A signal does not cut it short, so what was
        started is known.

        Raises:
            UserError: Ray itself was lost meanwhile.
        """
        return call_watched(call, self._check_ray)

    def _check(self) -> None:
        self._stop.check()
        self._check_ray()

    def _check_ray(self) -> None:
        if self._private and (lost := lost_process()):
            raise UserError(f"Ray's {lost} has ended, and with it the mesh", "start it again")

    def _follow_start(self, started: "ray.ObjectRef[str]", progress: Progress) -> None:
        """Show the controller's phases until its start is through."""
        assert self._controller is not None
        assert self._gateway is not None
        shown = ""
        losses = 0
        while True:
            done = _finished(started, POLL_S)
            self._check()
            if _finished(self._gateway, 0):
                self._await_gateway()
            try:
                if done:
                    log.debug("expert kernels: %s", ray.get(started))
                    break
                phase: ray.ObjectRef[tuple[str, str]] = self._controller.phase.remote()
                step, detail = ray.get(phase, timeout=PHASE_TIMEOUT_S)
            except GetTimeoutError:
                continue  # busy, or lost: the next look at Ray tells
            except RayActorError as error:
                # Ray starts it again; what it has started lives on and is found.
                losses += 1
                if losses > MAX_CONTROLLER_LOSSES:
                    raise UserError(f"the controller ended: {cause_of(error)}") from error
                self._stop.wait(CONTROLLER_PAUSE_S)
                started = self._controller.start.remote()
                continue
            except RayError as error:
                self._check_ray()
                raise UserError(cause_of(error)) from error
            if step != shown:
                progress.step(step)
                shown = step
                if step == LOAD_ENGINE:
                    self._watched(self._start_batch_runner)
            elif detail:
                progress.update(detail)
        progress.done()

    def _start_controller(self) -> ActorHandle:
        from orchestrator.controller import Controller

        return cluster.start_controller(
            self._config.logging,
            Controller,
            self._config.model_dump_json(),
            self._run_dir,
            self._secret,
        )

    def _open_gateway(self) -> "ray.ObjectRef[str]":
        """The gateway's URL, once it answers there.

        Another process does it and ends: what starts Serve waits inside Ray, where nothing can
        interrupt it, and starts a Ray session of its own if its caller leaves Ray meanwhile.
        """
        from orchestrator.gateway.deploy import deploy_gateway

        config, known = gateway_config(self._config), Secrets()
        mesh = RayMeshClient(cluster.CONTROLLER, namespace_of(self._config.mesh.name))
        return cluster.call_on_head(
            deploy_gateway, config, mesh, _digests(known.api_keys), _digests(known.admin_keys)
        )

    def _start_batch_runner(self) -> None:
        """While the engine loads, which mostly keeps one core busy."""
        settings = batch_settings(self._config)
        if settings is None or self._batch_runner is not None:
            return
        from orchestrator.batch.runner_process import BatchRunner

        mesh = RayMeshClient(cluster.CONTROLLER, namespace_of(self._config.mesh.name))
        logs = self._config.logging
        runner = cluster.start_batch_runner(
            logs, BatchRunner, settings, mesh, logs, cluster.BATCH_RUNNER
        )
        self._batch_runner = runner.__ray_ready__.remote()

    def _await_batch_runner(self) -> None:
        """Or its imports would take the cores from the first requests."""
        self._watched(self._start_batch_runner)
        deadline_s = time.monotonic() + RUNNER_TIMEOUT_S
        while self._batch_runner is not None and time.monotonic() < deadline_s:
            if _finished(self._batch_runner, POLL_S):
                return
            self._check()

    def _await_gateway(self) -> None:
        """Return once the endpoint is open. Raises UserError if it cannot be."""
        assert self._gateway is not None
        while not _finished(self._gateway, POLL_S):
            self._check()
        try:
            ray.get(self._gateway)
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, UserError):
                raise error.cause from error
            raise UserError(f"the endpoint did not open: {cause_of(error)}") from error

    def where_logs_are(self) -> str:
        """For the end of an error message; "" where there are no logs."""
        if not ray.is_initialized():
            return ""
        elsewhere = "" if self._private else " of each node"
        return f"logs are in {node_logs()}{elsewhere}"

    def stop(self, progress: Progress) -> None:
        """Drain, end all components, close the endpoint, end Ray. Goes on past failures."""
        progress.step("Stop the mesh")
        lost = self._private and ray.is_initialized() and lost_process()
        if self._controller is not None and ray.is_initialized() and not lost:
            self._end_controller(progress)
        if not self._private and self._gateway is not None:
            self._close_gateway()
        stop_ray(private=self._private, spared=self._spared)
        progress.done()

    def _end_controller(self, progress: Progress) -> None:
        """Requests under way may finish; a second signal cuts them off."""
        assert self._controller is not None
        deadline_s = time.monotonic() + self._config.controller.drain_timeout_s + STOP_MARGIN_S
        try:
            while (left_s := deadline_s - time.monotonic()) > 0:
                stopped: ray.ObjectRef[None] = self._controller.stop.remote()
                done = self._stop.wait_second(partial(_finished, stopped, POLL_S), left_s)
                if self._stop.second and not done:
                    progress.update("requests under way are cut off")
                try:
                    if done:
                        ray.get(stopped)
                    break
                except ActorUnavailableError:  # Ray is just starting it again
                    self._stop.wait_second(lambda: False, CONTROLLER_PAUSE_S)
            cluster.kill(self._controller)
        except (RayError, OSError, TimeoutError) as error:
            log.warning("while stopping: %s", cause_of(error))

    def _close_gateway(self) -> None:
        """In a shared cluster the endpoint has to be taken down; a private one goes as a whole."""
        assert self._gateway is not None
        from orchestrator.gateway.deploy import remove_gateway

        try:
            _finished(self._gateway, GATEWAY_START_TIMEOUT_S)
            remove_gateway(self._config.mesh.name)
            if (runner := cluster.find_batch_runner()) is not None:
                cluster.kill(runner)
        except (RayError, OSError, TimeoutError) as error:
            log.warning("while stopping: %s", cause_of(error))


def _import_ahead() -> None:
    for module in IMPORTED_AHEAD:
        importlib.import_module(module)


def _digests(keys: Iterable[SecretStr]) -> frozenset[bytes]:
    return frozenset(digest(key.get_secret_value()) for key in keys)


def _finished(answer: "ray.ObjectRef[Any]", timeout_s: float) -> bool:
    return bool(ray.wait([answer], timeout=timeout_s)[0])
