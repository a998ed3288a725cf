"""Detached meshes: real processes in the place of `expertmesh serve`, which keep the same file."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from orchestrator.cli import detached
from orchestrator.cli.detached import attach, detach, show_list, stop
from orchestrator.cli.running import RunningMesh, entry, find, running, user_folder
from orchestrator.errors import UserError

SERVING = """
import signal, sys, time
from orchestrator.cli.running import entry
import os
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with entry("demo", os.environ["EXPERTMESH_SERVE_LOG"]) as listed:
    print("starting", *sys.argv[1:], flush=True)
    listed.ready("http://127.0.0.1:1234")
    try:
        time.sleep(60)
    finally:
        print("stopping", flush=True)
"""
FAILING = "import sys; print('error: no such model', file=sys.stderr); sys.exit(2)"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    yield
    for mesh in running():
        if mesh.pid != os.getpid():
            os.kill(mesh.pid, signal.SIGKILL)


class Screen:
    """What a command shows."""

    def __init__(self) -> None:
        self._file = io.StringIO()
        self.console = Console(file=self._file, width=200, highlight=False)

    @property
    def text(self) -> str:
        return self._file.getvalue()


def start(screen: Screen, code: str = SERVING) -> int:
    return detach("demo", ["x.yaml"], screen.console, (sys.executable, "-c", code))


def test_a_detached_mesh_is_listed_shown_and_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    assert start(screen) == 0
    assert "starting x.yaml\n" in screen.text
    assert "`expertmesh stop demo` ends it" in screen.text
    (mesh,) = running()
    assert (mesh.mesh, mesh.url) == ("demo", "http://127.0.0.1:1234")
    assert os.getsid(mesh.pid) != os.getsid(0)  # a terminal's end does not reach it
    assert show_list(as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == [mesh.model_dump(mode="json")]
    with pytest.raises(UserError, match="a mesh named demo runs here already"):
        start(Screen())
    listed, stopped = Screen(), Screen()
    show_list(as_json=False, console=listed.console)
    assert listed.text.splitlines()[1].split()[:2] == ["demo", str(mesh.pid)]
    assert stop(None, 10.0, stopped.console) == 0
    assert stopped.text == "stopping\ndemo has ended\n"
    assert running() == []


def test_one_that_does_not_start_is_told_with_its_exit_code() -> None:
    screen = Screen()
    assert start(screen, FAILING) == 2
    assert screen.text == "error: no such model\n"
    assert running() == []


def test_attach_shows_everything_until_the_end() -> None:
    start(Screen())
    screen = Screen()
    thread = threading.Thread(target=attach, args=("demo", screen.console))
    thread.start()
    time.sleep(0.3)
    stop("demo", 10.0, Screen().console)
    thread.join(10)
    assert screen.text == "starting x.yaml\nstopping\n"


def test_one_that_does_not_end_is_told() -> None:
    code = SERVING.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")
    start(Screen(), code)
    assert stop("demo", 0.3, Screen().console) == 1


def test_the_files_of_processes_that_are_gone_do_not_count() -> None:
    folder = user_folder() / "running"
    folder.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", ""])
    began_s = psutil.Process(process.pid).create_time()
    process.wait()
    gone = RunningMesh(mesh="a", pid=process.pid, began_s=began_s)
    # Its process id belongs to another process by now.
    other = RunningMesh(mesh="b", pid=os.getpid(), began_s=1.0)
    for mesh in (gone, other):
        (folder / f"{mesh.mesh}-{mesh.pid}.json").write_text(mesh.model_dump_json())
    (folder / "odd.json").write_text("{")
    assert running() == []
    assert [path.name for path in folder.iterdir()] == ["odd.json"]


def test_names() -> None:
    with pytest.raises(UserError, match="no mesh runs here: start one with"):
        find(None)
    with entry("one"), entry("two"):
        assert find("one").pid == os.getpid()
        with pytest.raises(UserError, match="no mesh named three runs here: there are one"):
            find("three")
        with pytest.raises(UserError, match=r"several meshes run here: one.*: name one of them"):
            find(None)
        with pytest.raises(UserError, match="one runs in a terminal"):
            attach("one")


def test_a_folder_that_cannot_be_written_stops_no_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc")
    with entry("demo") as listed:
        listed.ready("http://127.0.0.1:1")
    assert detached.running() == []
