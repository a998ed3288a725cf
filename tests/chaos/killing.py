"""SIGKILL for a mesh's processes by their titles, or for all of them."""

import psutil

from tests.e2e.mesh_process import MeshProcess, wait_until


def command_of(process: psutil.Process) -> str:
    """Empty for one that is gone, or about to be."""
    try:
        return " ".join(process.cmdline()) if process.is_running() else ""
    except psutil.NoSuchProcess:  # a zombie, too
        return ""


def newest(mesh: MeshProcess, command: str) -> psutil.Process:
    """The newest process of the mesh whose command line holds `command`."""
    found = [process for process in list(mesh.seen.values()) if command in command_of(process)]
    return max(found, key=lambda process: process.create_time())


def kill_everything(mesh: MeshProcess) -> None:
    """All but the session guard, which removes what the others leave in shared memory."""
    for process in [psutil.Process(mesh.pid), *mesh.seen.values()]:
        command = command_of(process)
        if command and "session.guard" not in command:
            process.kill()
    mesh.wait()
    wait_until(lambda: not mesh.left_over(), 60, "the session guard's end")
