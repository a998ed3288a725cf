"""Cleans up after a private session whose command was killed.

A command that gets SIGKILL cannot end what it has started, and Ray's own processes take up to a
minute to notice. So the command starts this small process first, and holds the one end of a pipe to
it. As long as the command lives nothing comes; a command that ends in order says so; an end of file
without that word means that it was killed. Then the guard ends every process of the session,
removes the shared memory they had, and the run folder.

A process belongs to the session if it inherited its mark in the environment, whoever its parent is
by now. Ray's agents write their title over their environment; one of those belongs to the session
if it has a file open in the run folder. Nothing else is touched.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from orchestrator.session import process_tree

MARK_VARIABLE = "EXPERTMESH_SESSION"
"""Run folder of the private session a process belongs to."""

RAY_TITLE = "ray::"
"""How the titles of Ray's Python processes begin."""
FAREWELL = b"done"
END_TIMEOUT_S = 20.0
POLL_S = 0.1
QUIET_ROUNDS = 3
"""Looks in a row that find nothing before all is taken to be over: what was just being started has
not been seen yet."""


class SessionGuard:
    """The guard, as the command has it."""

    def __init__(self, run_folder: Path) -> None:
        """Start it, and mark this process and all it will start as the session's."""
        os.environ[MARK_VARIABLE] = str(run_folder)
        checkout = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.session.guard", str(run_folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
            # A terminal's Ctrl-C is not for it.
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def dismiss(self) -> None:
        """The command has cleaned up itself."""
        os.environ.pop(MARK_VARIABLE, None)
        self._process.communicate(FAREWELL)


def members(mark: str) -> list[psutil.Process]:
    """Living processes of this user, but this one, of the session with that run folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and _belongs(process, mark):
                found.append(process)
        except (psutil.Error, OSError):  # ended just now, a zombie, or somebody else's
            continue
    return found


def _belongs(process: psutil.Process, mark: str) -> bool:
    if process.environ().get(MARK_VARIABLE) == mark:
        return True
    if not process.cmdline()[:1] or not process.cmdline()[0].startswith(RAY_TITLE):
        return False
    opened = (os.readlink(fd.path) for fd in os.scandir(f"/proc/{process.pid}/fd"))
    return any(Path(path).is_relative_to(mark) for path in opened)


def end_session(mark: str, timeout_s: float = END_TIMEOUT_S) -> None:
    """Kill every member and unlink the shared memory they had mapped."""
    segments: set[Path] = set()
    deadline_s = time.monotonic() + timeout_s
    quiet = 0
    while quiet < QUIET_ROUNDS and time.monotonic() < deadline_s:
        living = members(mark)
        segments |= process_tree.shared_memory(living)
        process_tree.kill(living)
        quiet = 0 if living else quiet + 1
        time.sleep(POLL_S)
    process_tree.remove_shared_memory(segments)


def main(run_folder: str) -> None:
    if sys.stdin.buffer.read() == FAREWELL:
        return
    end_session(run_folder)
    shutil.rmtree(run_folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
