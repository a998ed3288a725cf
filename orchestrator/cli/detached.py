"""`expertmesh serve --detach`, `attach`, `stop` and `list`: meshes that run without a terminal."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from orchestrator.cli.running import RunningMesh, find, running, user_folder
from orchestrator.cli.tables import console_for, print_json, table
from orchestrator.errors import UserError

LOG_VARIABLE = "EXPERTMESH_SERVE_LOG"
"""Set for the detached command: the file its output goes to."""
POLL_S = 0.1
START_TIMEOUT_S = 1800.0
"""A large model's shards and engines take their time; the command itself has closer limits."""
COMMAND = (sys.executable, "-m", "orchestrator.cli", "serve")


def detach(
    mesh: str,
    arguments: Sequence[str],
    console: Console | None = None,
    command: Sequence[str] = COMMAND,
) -> int:
    """Run `expertmesh serve ARGUMENTS` in the background; returns when it serves.

    Its exit code where it ends before. Raises UserError if a mesh of that name runs already.
    """
    console = console_for(console)
    if any(other.mesh == mesh for other in running()):
        raise UserError(
            f"a mesh named {mesh} runs here already", f"`expertmesh stop {mesh}` ends it"
        )
    log = user_folder() / "logs" / f"{mesh}.log"
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, LOG_VARIABLE: str(log)},
        )
    try:
        return _follow_start(mesh, process, log, console)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


def _follow_start(
    mesh: str, process: "subprocess.Popen[bytes]", log: Path, console: Console
) -> int:
    shown = _Tail(log, console)
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        ended = process.poll()
        shown.show()
        if ended is not None:
            return ended
        if any(one.pid == process.pid and one.url for one in running()):
            console.print(
                f"{mesh} runs in the background: `expertmesh attach {mesh}` shows its output, "
                f"`expertmesh stop {mesh}` ends it",
                soft_wrap=True,
                markup=False,
            )
            return 0
        time.sleep(POLL_S)
    process.terminate()
    process.wait()
    raise UserError(f"{mesh} did not serve within {START_TIMEOUT_S:g} s", f"see {log}")


def attach(name: str | None, console: Console | None = None) -> int:
    """Show the output of a mesh until it ends; Ctrl-C leaves it running."""
    console = console_for(console)
    mesh = find(name)
    if not mesh.log:
        raise UserError(
            f"{mesh.mesh} runs in a terminal (process {mesh.pid})",
            "`expertmesh events --follow` shows what happens in it",
        )
    shown = _Tail(Path(mesh.log), console)
    try:
        while mesh.alive:
            shown.show()
            time.sleep(POLL_S)
        shown.show()
    except KeyboardInterrupt:
        console.print(f"\n{mesh.mesh} runs on; `expertmesh stop {mesh.mesh}` ends it", markup=False)
    return 0


def stop(name: str | None, timeout_s: float, console: Console | None = None) -> int:
    """Ask a mesh to let requests under way finish and to end; 1 if it has not in time."""
    console = console_for(console)
    mesh = find(name)
    # Without a log there is nothing to show.
    shown = _Tail(Path(mesh.log or os.devnull), console, at_end=True)
    os.kill(mesh.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + timeout_s
    while (alive := mesh.alive) and time.monotonic() < deadline_s:
        shown.show()
        time.sleep(POLL_S)
    shown.show()
    if alive:
        text = f"{mesh.mesh} (process {mesh.pid}) has not ended within {timeout_s:g} s"
        print(text, file=sys.stderr)
        return 1
    console.print(f"{mesh.mesh} has ended", markup=False)
    return 0


def show_list(as_json: bool, console: Console | None = None) -> int:
    """Every mesh that runs here."""
    meshes = running()
    if as_json:
        print_json([mesh.model_dump(mode="json") for mesh in meshes])
        return 0
    console = console_for(console)
    if not meshes:
        console.print("no mesh runs here")
        return 0
    console.print(table(("MESH", "PID", "SINCE", "URL", "OUTPUT"), map(_row, meshes), right="PID"))
    return 0


def _row(mesh: RunningMesh) -> list[str]:
    since = datetime.fromtimestamp(mesh.began_s)
    return [
        mesh.mesh,
        str(mesh.pid),
        f"{since:%Y-%m-%d %H:%M}",
        mesh.url or "starting",
        mesh.log or "terminal",
    ]


class _Tail:
    """Shows what is added to a file."""

    def __init__(self, path: Path, console: Console, *, at_end: bool = False) -> None:
        self._path = path
        self._console = console
        self._read = path.stat().st_size if at_end and path.exists() else 0

    def show(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        if whole:
            lines = whole.decode(errors="replace")
            self._console.print(lines, end="", markup=False, highlight=False, soft_wrap=True)
