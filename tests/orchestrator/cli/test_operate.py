"""The commands that look into a mesh and change it, over HTTP, on the control plane's real core."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cli import change as change_module
from orchestrator.cli import events as events_module
from orchestrator.cli.main import main
from tests.orchestrator.cli.core_mesh import CoreMesh, over_http


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EXPERTMESH_API_KEYS", "EXPERTMESH_ADMIN_KEYS", "EXPERTMESH_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> Iterator[CoreMesh]:
    core = CoreMesh()
    monkeypatch.setattr(change_module, "POLL_S", 0.02)
    with over_http(core) as url:
        monkeypatch.setenv("EXPERTMESH_URL", url)
        yield core


class Ran:
    """What one command came to."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        self.code = ended.value.code or 0
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> dict:
        return json.loads(self.out)


@pytest.mark.usefixtures("mesh")
def test_looking(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = Ran(capsys, "nodes")
    assert nodes.code == 0
    assert [line.split()[0] for line in nodes.out.splitlines()] == [
        "ID",
        "node-0",
        "node-1",
        "node-2",
    ]
    shards = Ran(capsys, "shards").out.splitlines()
    assert [line.split()[:3] for line in shards[1:5]] == [
        [f"cpu-{n}", "cpu", "ready"] for n in range(4)
    ]
    assert "cpu (pool) is the only one with" in shards[-1]
    layers = Ran(capsys, "experts").out.splitlines()
    assert layers[1].split()[:2] == ["0", "8"]
    one = Ran(capsys, "experts", "1").out.splitlines()
    assert [line.split()[0] for line in one[1:]] == [f"1/{n}" for n in range(8)]
    assert (
        Ran(capsys, "experts", "7").err
        == "error: layer 7 has no routed experts: give one of 0, 1\n"
    )
    assert "place: first placement" in Ran(capsys, "transactions").out
    assert "is ready" in Ran(capsys, "events").out


@pytest.mark.usefixtures("mesh")
def test_looking_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    for command, key in (
        ("nodes", "nodes"),
        ("shards", "shards"),
        ("experts", "copies"),
        ("transactions", "transactions"),
        ("events", "events"),
    ):
        answer = Ran(capsys, command, "--json").json
        assert answer[key]
        assert answer["stale_s"] == 0


def test_with_a_silent_controller_what_is_known_is_shown(
    mesh: CoreMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("nodes", "shards", "experts", "transactions", "events", "status"):
        assert Ran(capsys, command).code == 0
    mesh.silent = True
    for command in ("nodes", "shards", "experts", "transactions", "events", "status"):
        ran = Ran(capsys, command)
        assert (ran.code, ran.out.startswith("as of")) == (0, True), (command, ran.out, ran.err)
    assert Ran(capsys, "status", "--json").json["stale_s"] > 0
    refused = Ran(capsys, "drain", "cpu-1")
    assert refused.code == 2
    assert "changes need the controller" in refused.err


def test_a_drain_is_waited_for_and_its_events_are_shown(
    mesh: CoreMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = Ran(capsys, "drain", "cpu-3", "--dry-run")
    assert (planned.code, planned.out) == (0, "would be done: cpu-3 drains, then ends\n")
    ran = Ran(capsys, "drain", "cpu-3", "--wait")
    assert (ran.code, ran.err) == (0, "")
    assert "cpu-3: shard cpu-3 ended as asked: drained: no epoch names it" in ran.out
    assert "cpu-3" not in mesh.sim.state.intent.places


def test_a_rolling_restart_is_waited_for(
    mesh: CoreMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = Ran(capsys, "rolling-restart", "engine", "--wait", "--json")
    assert (ran.code, ran.json["trouble"]) == (0, "")
    places = mesh.sim.state.intent.places
    assert [places[f"engine-{n}"].generation for n in range(2)] == [2, 2]


@pytest.mark.usefixtures("mesh")
def test_a_wait_that_is_too_short_says_what_it_is_at(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran = Ran(capsys, "rolling-restart", "cpu", "--wait", "--timeout", "1")
    assert (ran.code, ran.err) == (1, "not through: it still goes on after 1 s\n")
    assert Ran(capsys, "rolling-restart", "--stop").code == 0


def test_pin_and_unpin(mesh: CoreMesh, capsys: pytest.CaptureFixture[str]) -> None:
    assert Ran(capsys, "pin", "0/1", "gpu", "--wait").code == 0
    rules = mesh.sim.state.intent.rules
    assert [(rule.key.number, rule.pinned) for rule in rules] == [(1, frozenset({"gpu"}))]
    assert Ran(capsys, "ban", "0/1", "gpu").err.startswith(
        "refused: that leaves expert 0/1 0 shards"
    )
    assert Ran(capsys, "unpin", "0/1").code == 0


@pytest.mark.usefixtures("mesh")
@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["drain", "cpu-33"], 1, "refused: unknown component 'cpu-33': did you mean cpu-3?"),
        (["scale", "cpu", "0"], 1, "refused: a pool has at least one member, 0 were asked for"),
        (["scale", "cqu", "3"], 1, "refused: unknown pool 'cqu': did you mean cpu?"),
        (["restart", "cpu-1"], 1, "refused: cpu-1 was not given up: it is ready; "
         "`rolling-restart cpu-1` replaces a process that runs"),
        (["rolling-restart"], 2,
         "error: rolling-restart takes a target or --stop: give one of them"),
        (["drain", "cpu-1", "--url", "http://127.0.0.1:1"], 2,
         "error: no mesh answers at http://127.0.0.1:1: "
         "start one with `expertmesh serve`, or give --url"),
        (["drain", "cpu-1", "--key-file", "/nowhere"], 2,
         "error: key file /nowhere cannot be read: No such file or directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, line: str
) -> None:
    ran = Ran(capsys, *arguments)
    assert (ran.code, ran.out, ran.err) == (code, "", line + "\n")


@pytest.mark.usefixtures("mesh")
def test_refusals_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "scale", "cpu", "1", "--json")
    assert ran.code == 1
    assert "the shards that stay have room for" in ran.json["refused"]


def test_events_are_followed_over_a_break(
    mesh: CoreMesh, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "RETRY_S", 0.05)
    last = len(mesh.journal.lines)
    seen = []

    def read() -> None:
        for event in events_module.follow_events(url, last - 2):
            seen.append(event.number)
            if len(seen) == 3:
                return

    import os

    url = os.environ["EXPERTMESH_URL"]
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    time.sleep(0.5)
    assert Ran(capsys, "cordon", "cpu-1").code == 0
    thread.join(10)
    assert seen == [last - 1, last, last + 1]


def test_the_admin_key_comes_from_the_environment_or_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with over_http(CoreMesh(), keys=["client"], admins=["root"]) as url:
        monkeypatch.setenv("EXPERTMESH_URL", url)
        monkeypatch.setenv("EXPERTMESH_API_KEYS", "client")
        assert Ran(capsys, "nodes").code == 0
        refused = Ran(capsys, "cordon", "cpu-1")
        assert refused.code == 2
        assert "no valid admin key" in refused.err
        file = tmp_path / "key"
        file.write_text("root\n")
        assert Ran(capsys, "cordon", "cpu-1", "--key-file", str(file)).code == 0
        monkeypatch.setenv("EXPERTMESH_ADMIN_KEYS", "root")
        assert Ran(capsys, "uncordon", "cpu-1").code == 0
        monkeypatch.delenv("EXPERTMESH_API_KEYS")
        assert Ran(capsys, "nodes").code == 0
