"""Run one mesh from this process: start it, serve until a signal, drain, leave nothing behind.

Signals only set an event that every wait here looks at: nothing is interrupted half-way, so what
was started is known at each moment and can be ended.
"""

import logging
import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.dispatch.subscription import SECRET_VARIABLE
from orchestrator import cluster
from orchestrator.cli.progress import Progress, endpoint_url, next_steps
from orchestrator.config.schema import MeshConfig
from orchestrator.config.secrets import Secrets
from orchestrator.errors import UserError
from orchestrator.gateway.auth import digest
from orchestrator.gateway.config import GatewayConfig
from orchestrator.ray_session import namespace_of, start_ray, stop_ray
from orchestrator.root_cause import cause_of
from orchestrator.run_dir import RunDir
from orchestrator.stop_signals import StopRequested, StopSignals

log = logging.getLogger(__name__)

POLL_S = 0.1
GATEWAY_START_TIMEOUT_S = 60.0
"""An endpoint that is just being opened can be closed only after that."""
STOP_MARGIN_S = 20.0
"""On top of the drain: time the components have for closing down."""


def run_mesh(config: MeshConfig, progress: Progress) -> int:
    """Start the mesh of `config` and serve until SIGINT or SIGTERM. Returns the exit code.

    Success and failure alike end every process and remove every socket that was started here; after
    a failed start the run folder with the logs is kept and named.

    Raises:
        UserError: the mesh cannot start as configured.
    """
    run_dir = RunDir.create(config.cluster.temp_dir)
    secret = os.environ.get(SECRET_VARIABLE, "") or secrets.token_hex(32)
    with StopSignals() as stop:
        session = _Session(config, run_dir, secret.encode(), stop)
        try:
            session.start(progress)
            stop.wait()
        except StopRequested:
            progress.give_up("stopped")
        except UserError as error:
            progress.give_up()
            session.stop(progress)
            where = f"logs are in {run_dir.logs}"
            raise UserError(
                error.message, f"{error.fix}; {where}" if error.fix else where
            ) from error
        except BaseException:
            progress.give_up()
            session.stop(progress)
            progress.warn(f"logs are in {run_dir.logs}")
            raise
        session.stop(progress)
        run_dir.remove()
    return 0


class _Session:
    """Ray, controller and gateway of one mesh, in the order they come and go."""

    def __init__(
        self, config: MeshConfig, run_dir: RunDir, secret: bytes, stop: StopSignals
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._secret = secret
        self._stop = stop
        self._private = config.cluster.ray_address is None
        self._controller: ActorHandle | None = None
        self._gateway: Future[None] | None = None

    def start(self, progress: Progress) -> None:
        """Everything up to the first answered request.

        Raises:
            StopRequested: a signal came.
            UserError: something does not start; says what and why.
        """
        progress.step("Start Ray")
        start_ray(self._config, self._run_dir)
        self._stop.install()  # Ray puts its own SIGTERM handler in place
        self._stop.check()
        progress.done()
        if not self._private and cluster.find_controller() is not None:
            raise UserError(
                f"a mesh named {self._config.mesh.name} already runs in that Ray cluster",
                "choose another mesh.name or stop it first",
            )
        self._controller = cluster.start_controller(self._config, self._run_dir, self._secret)
        started: ray.ObjectRef[str] = self._controller.start.remote()
        # The endpoint opens while the model loads; until then /health says that it does.
        self._gateway = _in_background(self._open_gateway)
        self._follow_start(started, progress)
        progress.step("Open the endpoint")
        self._await_gateway()
        progress.done()
        gateway = self._config.gateway
        url = endpoint_url(gateway.host, gateway.port, gateway.route_prefix)
        progress.ready(url, next_steps(url, self._config.model.name, bool(Secrets().api_keys)))

    def _follow_start(self, started: "ray.ObjectRef[str]", progress: Progress) -> None:
        """Show the controller's phases until its start is through."""
        assert self._controller is not None
        assert self._gateway is not None
        shown, done = "", False
        try:
            while not done:
                done = bool(ray.wait([started], timeout=POLL_S)[0])
                self._stop.check()
                phase: ray.ObjectRef[tuple[str, str]] = self._controller.phase.remote()
                step, detail = ray.get(phase)
                if step != shown and not done:
                    progress.step(step)
                    shown = step
                elif detail:
                    progress.update(detail)
                if self._gateway.done():
                    self._await_gateway()
            log.debug("expert kernels: %s", ray.get(started))
        except RayError as error:
            raise UserError(cause_of(error)) from error
        progress.done()

    def _open_gateway(self) -> None:
        # Imports Ray Serve: a second that the controller's start need not wait for.
        from orchestrator.gateway.deploy import deploy_gateway
        from orchestrator.gateway.ray_mesh import RayMesh

        settings = self._config.gateway
        config = GatewayConfig(
            mesh=self._config.mesh.name,
            model_name=self._config.model.name,
            host=settings.host,
            port=settings.port,
            route_prefix=settings.route_prefix,
            max_queued_requests=settings.max_queued_requests,
            max_body_bytes=settings.max_request_body,
            body_timeout_s=settings.body_timeout_s,
            send_timeout_s=settings.send_timeout_s,
        )
        mesh = RayMesh(cluster.CONTROLLER, namespace_of(self._config.mesh.name))
        keys = (key.get_secret_value() for key in Secrets().api_keys)
        deploy_gateway(config, mesh, frozenset(map(digest, keys)))

    def _await_gateway(self) -> None:
        """Return once the endpoint is open. Raises UserError if it cannot be."""
        assert self._gateway is not None
        while not self._gateway.done():
            self._stop.check()
            self._stop.wait(POLL_S)
        try:
            self._gateway.result()
        except RayError as error:
            raise UserError(f"the endpoint did not open: {cause_of(error)}") from error

    def stop(self, progress: Progress) -> None:
        """Drain, end all components, close the endpoint, end Ray. Goes on past failures."""
        progress.step("Stop the mesh")
        if self._controller is not None and ray.is_initialized():
            self._end_controller(progress)
        if not self._private and self._gateway is not None:
            self._close_gateway()
        stop_ray(private=self._private)
        progress.done()

    def _end_controller(self, progress: Progress) -> None:
        """Requests under way may finish; a second signal cuts them off."""
        assert self._controller is not None
        stopped: ray.ObjectRef[None] = self._controller.stop.remote()
        timeout_s = self._config.controller.drain_timeout_s + STOP_MARGIN_S
        try:
            done = self._stop.wait_second(lambda: _finished(stopped, POLL_S), timeout_s)
            if done:
                ray.get(stopped)
            elif self._stop.second:
                progress.update("requests under way are cut off")
            cluster.kill(self._controller)
        except (RayError, OSError, TimeoutError) as error:
            log.warning("while stopping: %s", cause_of(error))

    def _close_gateway(self) -> None:
        """In a shared cluster the endpoint has to be taken down; a private one goes as a whole."""
        assert self._gateway is not None
        from orchestrator.gateway.deploy import remove_gateway

        try:
            self._gateway.exception(GATEWAY_START_TIMEOUT_S)
            remove_gateway(self._config.mesh.name)
        except (RayError, OSError, TimeoutError) as error:
            log.warning("while stopping: %s", cause_of(error))


def _finished(answer: "ray.ObjectRef[Any]", timeout_s: float) -> bool:
    return bool(ray.wait([answer], timeout=timeout_s)[0])


def _in_background(work: Callable[[], None]) -> Future[None]:
    """Run `work` in a thread that nobody has to wait for, not even at this program's end."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="open-gateway", daemon=True).start()
    return future
