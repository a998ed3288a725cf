"""`expertmesh status` against a small HTTP server."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from rich.console import Console

from orchestrator.cli.status import fetch_status, status
from orchestrator.errors import UserError
from orchestrator.status import ComponentKind, ComponentState, ComponentStatus, MeshStatus

MESH = MeshStatus(
    mesh="demo",
    model="tiny [v4]",
    ready=False,
    reason="shard ascend-0 is loading",
    epoch=3,
    router_mode="embedded",
    components=[
        ComponentStatus(
            id="ascend-0",
            kind=ComponentKind.SHARD,
            pool="ascend",
            emulated=True,
            node="box",
            pid=4242,
            state=ComponentState.LOADING,
            detail="layer 2 of 4",
            memory_bytes=4_700_160,
            slots=90,
            speed=0.7,
        ),
        ComponentStatus(
            id="controller",
            kind=ComponentKind.CONTROLLER,
            node="box",
            pid=4243,
            state=ComponentState.READY,
        ),
    ],
)


def one_spaced(line: str) -> str:
    return " ".join(line.split())


class Answering(HTTPServer):
    def __init__(self, code: int, body: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.code, self.body = code, body.encode()
        self.paths: list[str] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Answering

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.server.keys.append(self.headers["Authorization"])
        self.send_response(self.server.code)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serving(request: pytest.FixtureRequest) -> Iterator[Answering]:
    with Answering(*request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


with_mesh = pytest.mark.parametrize("serving", [(200, MESH.model_dump_json())], indirect=True)


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPERTMESH_API_KEYS", raising=False)


def on_terminal(serving: Answering, width: int, wide: bool = False) -> list[str]:
    """Lines that `status` writes on a terminal of this width."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, no_color=True, color_system=None)
    assert status(serving.url + "/", as_json=False, wide=wide, console=console) == 0
    assert serving.paths == ["/api/v1/status"]
    return out.getvalue().splitlines()


@with_mesh
def test_table_fits_80_columns(serving: Answering) -> None:
    head, _, _, columns, shard, controller, _, detail = on_terminal(serving, 80)
    assert head.startswith("demo serves tiny [v4]: not ready (shard ascend-0 is loading), plan epo")
    assert one_spaced(columns) == "ID POOL STATE NODE PID MEMORY SLOTS SPEED"
    assert one_spaced(shard) == "ascend-0 ascend emulated loading box 4242 4.5 MiB 90 0.70"
    assert one_spaced(controller) == "controller - ready box 4243 - - -"
    assert detail == "ascend-0: layer 2 of 4"


@with_mesh
def test_a_narrow_terminal_shortens_the_node_first(serving: Answering) -> None:
    wanted = [f"{c.id} " for c in MESH.components]
    lines = on_terminal(serving, 58)
    assert [line for line in lines if line.startswith(tuple(wanted))] == lines[4:6]
    assert "ascend emulated loading" in one_spaced(lines[4])


@with_mesh
def test_wide_table_has_it_all(serving: Answering) -> None:
    *_, columns, shard, controller = on_terminal(serving, 140, wide=True)
    assert one_spaced(columns) == "ID KIND POOL STATE NODE PID MEMORY SLOTS SPEED DETAIL"
    assert one_spaced(shard) == (
        "ascend-0 shard ascend emulated loading box 4242 4.5 MiB 90 0.70 layer 2 of 4"
    )
    assert one_spaced(controller) == "controller controller - ready box 4243 - - -"


@with_mesh
def test_nothing_is_cut_off_in_a_pipe(serving: Answering) -> None:
    out = io.StringIO()
    status(serving.url, as_json=False, console=Console(file=out, width=40))
    assert "…" not in out.getvalue()
    assert out.getvalue().splitlines()[-1] == "ascend-0: layer 2 of 4"


@with_mesh
def test_json_is_what_the_mesh_said(serving: Answering, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(serving.url.removeprefix("http://"), as_json=True) == 0
    assert MeshStatus.model_validate(json.loads(capsys.readouterr().out)) == MESH


@with_mesh
def test_api_key_is_sent(serving: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERTMESH_API_KEYS", "one,two")
    fetch_status(serving.url)
    assert serving.keys == ["Bearer one"]


@with_mesh
def test_proxies_are_not_asked(serving: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    assert fetch_status(serving.url) == MESH


@pytest.mark.parametrize(
    ("serving", "message"),
    [
        ((401, "{}"), "wants an API key: set EXPERTMESH_API_KEYS"),
        ((404, "<html>"), r"\(status 404\) is not a mesh of this version"),
        ((200, '{"mesh": "x"}'), r"\(status 200\) is not a mesh of this version"),
    ],
    indirect=["serving"],
)
def test_other_answers_are_told_apart(serving: Answering, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fetch_status(serving.url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[bad", "ftp://x", "http://"])
def test_nothing_there(url: str) -> None:
    with pytest.raises(UserError, match="no mesh answers at"):
        fetch_status(url)
