"""`expertmesh serve`: read the config, check the machine, then hand over to the launcher."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from orchestrator.cli.detached import LOG_VARIABLE, detach
from orchestrator.cli.progress import ConsoleProgress, next_steps
from orchestrator.cli.running import entry
from orchestrator.config.load import load_config
from orchestrator.config.schema import MeshConfig
from orchestrator.config.secrets import Secrets
from orchestrator.logging_setup import set_up_logging
from orchestrator.preflight.checks import check_config, check_installation, require_ok
from orchestrator.preflight.finding import Finding, Level


def run_mesh(config: MeshConfig, progress: ConsoleProgress) -> int:
    """Start the mesh and serve until a signal; imported late because it imports Ray."""
    from orchestrator.session.launch import run_mesh as run

    exit_code: int = run(config, progress)
    return exit_code


def check(config: MeshConfig) -> list[Finding]:
    return [*check_installation(), *check_config(config)]


def serve(
    path: Path | None,
    host: str | None,
    port: int | None,
    *,
    progress: ConsoleProgress,
    check: Callable[[MeshConfig], list[Finding]] = check,
    run: Callable[[MeshConfig, ConsoleProgress], int] = run_mesh,
) -> int:
    """Serve the mesh of a config file until a signal; returns the exit code.

    host, port: instead of the config's. Raises UserError before anything is started if the config
    or the machine will not do.
    """
    config = load_config(path).with_endpoint(host or None, port)
    set_up_logging(config.logging, component="serve")
    progress.step("Check the machine")
    findings = check(config)
    require_ok(findings)
    progress.done(f"{len(findings)} checks")
    for finding in findings:
        if finding.level is Level.WARNING:
            progress.warn(f"{finding.message}: {finding.fix}")
    if config.gateway.port == 0:
        config = config.with_endpoint(None, free_port(config.gateway.host))
    with entry(config.mesh.name, os.environ.get(LOG_VARIABLE, "")) as listed:
        progress.on_ready = listed.ready
        progress.next_steps = lambda url: next_steps(
            url, config.model.name, bool(Secrets().api_keys)
        )
        return run(config, progress)


def serve_detached(path: Path | None, host: str | None, port: int | None) -> int:
    """Have a command without a terminal serve the mesh; returns when it does, or its exit code.

    Raises UserError where the config will not do.
    """
    config = load_config(path).with_endpoint(host or None, port)
    given = [str(path)] if path else []
    given += ["--host", host] if host else []
    given += ["--port", str(port)] if port is not None else []
    return detach(config.mesh.name, given)


def free_port(host: str) -> int:
    """A port nobody listens on at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
