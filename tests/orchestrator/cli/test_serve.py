"""`expertmesh serve` up to the launcher, which a fake stands in for."""

import io
import socket
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli.progress import ConsoleProgress
from orchestrator.cli.serve import serve
from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError
from orchestrator.preflight.finding import Finding, Level


class Launcher:
    """Remembers what it was asked to run."""

    def __init__(self) -> None:
        self.configs: list[MeshConfig] = []

    def __call__(self, config: MeshConfig, progress: ConsoleProgress) -> int:
        progress.step("Start")
        self.configs.append(config)
        return 7


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "mesh.yaml"
    path.write_text("model: {path: m}\npools: {a: {vendor: cpu}}\n")
    return path


def findings(*levels: Level) -> list[Finding]:
    return [Finding("thing", level, f"found {level}", "mend it") for level in levels]


def test_hands_the_config_to_the_launcher(config_path: Path) -> None:
    out, run = io.StringIO(), Launcher()
    code = serve(
        config_path,
        None,
        9001,
        progress=ConsoleProgress(Console(file=out)),
        check=lambda _: findings(Level.OK, Level.WARNING),
        run=run,
    )
    assert code == 7
    assert [config.gateway.port for config in run.configs] == [9001]
    assert "Check the machine: 2 checks" in out.getvalue()
    assert "warning: found warning: mend it" in out.getvalue()


def test_a_failed_check_stops_before_the_launcher(config_path: Path) -> None:
    run, progress = Launcher(), ConsoleProgress(Console(file=io.StringIO()))
    with pytest.raises(UserError, match="found failure: mend it"):
        serve(
            config_path,
            None,
            None,
            progress=progress,
            check=lambda _: findings(Level.FAILURE),
            run=run,
        )
    assert run.configs == []


def test_port_0_becomes_a_free_port(config_path: Path) -> None:
    run, progress = Launcher(), ConsoleProgress(Console(file=io.StringIO()))
    serve(config_path, None, 0, progress=progress, check=lambda _: [], run=run)
    port = run.configs[0].gateway.port
    assert port > 0
    socket.create_server(("127.0.0.1", port)).close()
