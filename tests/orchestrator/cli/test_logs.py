"""`expertmesh logs` over HTTP, on files in the form that Ray leaves."""

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from orchestrator.cli.logs import followed
from orchestrator.cli.main import main
from orchestrator.telemetry.log_files import Read, read_logs
from tests.orchestrator.cli.core_mesh import over_http
from tests.orchestrator.gateway.fakes import FakeMesh


class Folders:
    """Each node's files in a folder of its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def nodes(self) -> list[str]:
        return [*sorted(path.name for path in self.folder.iterdir()), "lost"]

    async def read(self, node: str, offsets: Mapping[str, int]) -> Read:
        if node == "lost":
            raise OSError("the node does not answer")
        return read_logs(self.folder / node, node, offsets)

    def write(self, node: str, pid: int, second: int, component: str, text: str) -> None:
        path = self.folder / node / f"worker-{pid:056x}-ffffffff-{pid}.err"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(":job_id:01000000\n:actor_name:Some\n")
        with path.open("a") as file:
            file.write(f"2026-11-26 11:56:{second:02d},000 INFO    {component} a.b: {text}\n")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path)
    made.write("head", 1, 1, "controller", "first placement")
    made.write("node-1", 2, 2, "cpu-0", "loaded")
    made.write("head", 1, 3, "controller", "ready")
    return made


@pytest.fixture
def url(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("EXPERTMESH_API_KEYS", "EXPERTMESH_ADMIN_KEYS"):
        monkeypatch.delenv(name, raising=False)
    with over_http(FakeMesh({}), logs=folders) as address:
        monkeypatch.setenv("EXPERTMESH_URL", address)
        yield address


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["logs", *arguments])
    return int(ended.value.code or 0), *capsys.readouterr()


@pytest.mark.usefixtures("url")
def test_logs_of_all_nodes_come_in_the_order_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(capsys)
    assert code == 0
    assert "without node lost: the node does not answer" in out
    shown = [line.split()[1:] for line in out.splitlines()[1:]]
    assert shown == [
        ["info", "controller", "first", "placement"],
        ["info", "cpu-0", "loaded"],
        ["info", "controller", "ready"],
    ]


@pytest.mark.usefixtures("url")
def test_one_component_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ran(capsys, "cpu", "--json")
    (line,) = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert (line["component"], line["node"], line["pid"]) == ("cpu-0", "node-1", 2)


@pytest.mark.usefixtures("url")
def test_a_component_that_wrote_nothing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ran(capsys, "gpu-7")
    assert (code, err) == (
        2, "error: nothing was written by gpu-7: there are controller, cpu-0\n",
    )  # fmt: skip


def test_following_shows_what_comes(url: str, folders: Folders) -> None:
    lines = followed(url, "controller", 1, "")
    assert next(lines)["message"] == "ready"
    threading.Timer(0.2, folders.write, ("head", 1, 9, "controller", "rebalanced")).start()
    assert next(lines)["message"] == "rebalanced"
    lines.close()


def test_an_ended_mesh_is_read_from_its_folder(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = ran(capsys, "--from", str(folders.folder / "head"), "--lines", "1")
    assert out.split()[1:] == ["info", "controller", "ready"]
    code, _, err = ran(capsys, "--from", str(folders.folder / "nothing"))
    assert code == 2
    assert "there are no logs of a mesh" in err


def test_logs_need_an_admin_key(
    folders: Folders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EXPERTMESH_ADMIN_KEYS", raising=False)
    monkeypatch.setenv("EXPERTMESH_API_KEYS", "client")
    with over_http(FakeMesh({}), keys=["client"], admins=["root"], logs=folders) as address:
        code, _, err = ran(capsys, "--url", address)
        assert code == 2
        assert "no valid admin key" in err
        monkeypatch.setenv("EXPERTMESH_ADMIN_KEYS", "root")
        assert ran(capsys, "--url", address)[0] == 0
