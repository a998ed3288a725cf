"""Run one mesh from this process: start it, serve until a signal, drain, leave nothing behind."""

import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from actors.dispatch.subscription import SECRET_VARIABLE
from orchestrator import cluster
from orchestrator.cli.progress import Progress, endpoint_url, next_steps
from orchestrator.config.schema import MeshConfig
from orchestrator.config.secrets import Secrets
from orchestrator.errors import UserError
from orchestrator.gateway.auth import digest
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.deploy import deploy_gateway, remove_gateway
from orchestrator.gateway.ray_mesh import RayMesh
from orchestrator.ray_session import namespace_of, start_ray, stop_ray
from orchestrator.run_dir import RunDir

log = logging.getLogger(__name__)

PHASE_POLL_S = 0.25
STOP_MARGIN_S = 40.0
"""On top of the drain: time the components have for closing down."""


class StopRequested(BaseException):
    """A signal asked for the end while the mesh was starting."""


def run_mesh(config: MeshConfig, progress: Progress) -> int:
    """Start the mesh of `config` and serve until SIGINT or SIGTERM. Returns the exit code.

    Success and failure alike end every process and remove every socket that was started here; after
    a failed start the run folder with the logs is kept and named.

    Raises:
        UserError: the mesh cannot start as configured.
    """
    run_dir = RunDir.create(config.cluster.temp_dir)
    secret = os.environ.get(SECRET_VARIABLE, "") or secrets.token_hex(32)
    session = _Session(config, run_dir, secret.encode())
    keep_logs = True
    with _stop_signals() as stop:
        try:
            session.start(progress, stop)
            stop.on_signal = None
            stop.event.wait()
            keep_logs = False
        except StopRequested:
            keep_logs = False
        finally:
            stop.on_signal = None
            progress.step("Stop the mesh")
            session.stop()
            progress.done(f"logs are in {run_dir.logs}" if keep_logs else "")
            if not keep_logs:
                run_dir.remove()
    return 0


class _Session:
    """Ray, controller and gateway of one mesh, in the order they come and go."""

    def __init__(self, config: MeshConfig, run_dir: RunDir, secret: bytes) -> None:
        self._config = config
        self._run_dir = run_dir
        self._secret = secret
        self._controller: ActorHandle | None = None
        self._gateway = False

    def start(self, progress: Progress, stop: "_Stop") -> None:
        """Everything up to the first answered request."""
        stop.on_signal = _raise_stop
        progress.step("Start Ray")
        start_ray(self._config, self._run_dir)
        stop.install()  # Ray puts its own SIGTERM handler in place
        progress.done()
        if cluster.find_controller() is not None:
            raise UserError(
                f"a mesh named {self._config.mesh.name} already runs in that Ray cluster",
                "choose another mesh.name or stop it first",
            )
        self._controller = cluster.start_controller(self._config, self._run_dir, self._secret)
        kernels = self._follow_start(progress)
        log.info("expert kernels: %s", kernels)
        progress.step("Open the endpoint")
        url = self._open_gateway()
        progress.done()
        progress.ready(url, next_steps(url, self._config.model.name, bool(Secrets().api_keys)))

    def _follow_start(self, progress: Progress) -> str:
        """Show the controller's phases until its start is through."""
        assert self._controller is not None
        started: ray.ObjectRef[str] = self._controller.start.remote()
        shown = ""
        while True:
            done, _ = ray.wait([started], timeout=PHASE_POLL_S)
            step, detail = ray.get(self._controller.phase.remote())
            if step != shown and not done:
                progress.step(step)
                shown = step
            elif detail:
                progress.update(detail)
            if done:
                break
        try:
            kernels: str = ray.get(started)
        except RayTaskError as error:
            if isinstance(error.cause, UserError | ValueError):
                raise UserError(str(error.cause)) from error
            raise
        progress.done()
        return kernels

    def _open_gateway(self) -> str:
        settings = self._config.gateway
        config = GatewayConfig(
            model_name=self._config.model.name,
            host=settings.host,
            port=settings.port,
            max_queued_requests=settings.max_queued_requests,
            max_body_bytes=settings.max_request_body,
        )
        mesh = RayMesh(cluster.CONTROLLER, namespace_of(self._config.mesh.name))
        self._gateway = True
        keys = (key.get_secret_value() for key in Secrets().api_keys)
        deploy_gateway(config, mesh, frozenset(map(digest, keys)))
        return endpoint_url(settings.host, settings.port)

    def stop(self) -> None:
        """Close the endpoint, drain, end all components, end Ray. Goes on past failures."""
        steps: list[Callable[[], Any]] = []
        if self._gateway:
            steps.append(remove_gateway)
        if self._controller is not None:
            steps.append(self._stop_controller)
        for step in steps:
            try:
                step()
            except (RayError, OSError, TimeoutError) as error:
                log.warning("while stopping: %s", error)
        stop_ray(private=self._config.cluster.ray_address is None)

    def _stop_controller(self) -> None:
        assert self._controller is not None
        timeout_s = self._config.controller.drain_timeout_s + STOP_MARGIN_S
        ray.get(self._controller.stop.remote(), timeout=timeout_s)
        cluster.kill(self._controller)


class _Stop:
    """SIGINT and SIGTERM, turned into an event; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.on_signal: Callable[[], None] | None = None

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.event.is_set():
            log.warning("a second %s: still stopping", signal.Signals(number).name)
            return
        self.event.set()
        if self.on_signal is not None:
            self.on_signal()


def _raise_stop() -> None:
    raise StopRequested


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Handle the stop signals for the length of the block."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop = _Stop()
    stop.install()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
