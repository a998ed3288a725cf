"""A command that is killed leaves nothing; one that ends in order is left alone."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from orchestrator.run_dir import RunDir
from orchestrator.session.guard import members
from tests.processes import living, wait_until

ROOT = Path(__file__).resolve().parents[3]
COMMAND = """
import os, signal, subprocess, sys
from pathlib import Path
from orchestrator.session.guard import SessionGuard

guard = SessionGuard(Path(sys.argv[1]))
child = '''
import time
from multiprocessing import resource_tracker, shared_memory
kept = shared_memory.SharedMemory(create=True, size=64)
resource_tracker.unregister(kept._name, "shared_memory")
print(kept.name, flush=True)
time.sleep(600)
'''
started = subprocess.Popen(
    [sys.executable, "-c", child],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    start_new_session=True,
)
print(guard.pid, started.pid, started.stdout.readline().strip(), flush=True)
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


def run(folder: Path, end: str) -> tuple[int, int, Path]:
    """Process ids of guard and child, and the child's segment, of a command that ended so."""
    command = [sys.executable, "-c", COMMAND + end, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    guard, child, segment = done.stdout.split()
    return int(guard), int(child), Path("/dev/shm", segment)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and living([psutil.Process(pid)]) != []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run" / "s").mkdir(parents=True)
    return tmp_path / "run"


def test_a_killed_command_leaves_nothing(folder: Path) -> None:
    guard, child, segment = run(folder, KILLED)
    wait_until(lambda: not alive(guard))
    assert not alive(child)
    assert not segment.exists()
    assert not folder.exists()


AGENT = """
import os, sys, time
import setproctitle
log = open(os.path.join(sys.argv[1], "agent.log"), "w")
setproctitle.setproctitle(sys.argv[2])
print("up", flush=True)
time.sleep(600)
"""


def start_agent(folder: Path, title: str) -> psutil.Process:
    """A process with that title, a file open in `folder`, and no mark."""
    started = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(folder), title], stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "up\n"
    started.stdout.close()
    return psutil.Process(started.pid)


def test_rays_agents_are_known_by_their_open_files(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    agents = [
        start_agent(folder, "ray::DashboardAgent"),
        start_agent(other, "ray::DashboardAgent"),
        start_agent(folder, "tail"),
    ]
    try:
        assert members(str(folder)) == agents[:1]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()


def test_a_command_that_ends_in_order_has_cleaned_up_itself(folder: Path) -> None:
    guard, child, segment = run(folder, "guard.dismiss()")
    try:
        assert not alive(guard)
        assert alive(child)
        assert folder.exists()
    finally:
        psutil.Process(child).kill()
        segment.unlink(missing_ok=True)


def test_only_logs_are_kept() -> None:
    run_dir = RunDir.create()
    logs = run_dir.ray / "session_1" / "logs"
    logs.mkdir(parents=True)
    (run_dir.ray / "session_latest").symlink_to(logs.parent)
    (logs / "raylet.err").touch()
    for path in (run_dir.scratch / "x", logs.parent / "sockets", run_dir.path / "s"):
        path.touch()
    run_dir.keep_only_logs()
    files = [path for path in run_dir.path.rglob("*") if not path.is_dir()]
    assert files == [logs / "raylet.err"]
    run_dir.remove()


SESSION = """
import os, signal, sys
from pathlib import Path
import psutil
from orchestrator.config.schema import MeshConfig
from orchestrator.session.ray_session import start_ray
from orchestrator.run_dir import RunDir
from orchestrator.session.guard import SessionGuard

pool = {"vendor": "cpu", "memory": "1MiB"}
config = MeshConfig.model_validate({"model": {"path": "/m"}, "pools": {"host": pool}})
run_dir = RunDir.create(Path(sys.argv[1]))
guard = SessionGuard(run_dir.path)
start_ray(config, run_dir)
family = psutil.Process().children(recursive=True)
print(run_dir.path, *(process.pid for process in family), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.ray
def test_a_killed_command_takes_its_ray_session_along() -> None:
    with TemporaryDirectory(prefix="g") as parent:
        command = [sys.executable, "-c", SESSION, parent]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        run_folder, *pids = done.stdout.split()
        assert len(pids) > 3  # guard, head process, raylet, agents
        # Ray's own agents would stay for a minute.
        wait_until(lambda: not any(alive(int(pid)) for pid in pids), 30)
        wait_until(lambda: not Path(run_folder).exists())
        assert members(run_folder) == []
