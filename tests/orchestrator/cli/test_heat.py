"""`expertmesh experts`: the load beside the copies."""

import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from orchestrator.cli.heat import CELLS, heat_line
from orchestrator.cli.main import main
from orchestrator.traffic_load import KindLoad
from tests.dashboards.moving_mesh import MovingMesh, moving_mesh, served
from tests.processes import wait_until


@pytest.fixture
def mesh() -> MovingMesh:
    return moving_mesh()


@pytest.fixture
def url(mesh: MovingMesh) -> Iterator[str]:
    with served(mesh) as address:
        wait_until(lambda: httpx.get(f"{address}/api/v1/telemetry").json().get("hot"))
        yield address


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        main(["experts", *arguments])
    assert not ended.value.code
    return capsys.readouterr().out.splitlines()


def test_each_layer_is_a_line_of_heat(
    url: str, mesh: MovingMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    head, *rows = ran(capsys, "--url", url)
    assert head.split() == ["LAYER", "EXPERTS", "COPIES", "ONLY-ONE", "MOST", "LOAD"]
    for layer, row in enumerate(rows[: mesh.num_layers]):
        heat = row.split()[-1]
        assert len(heat) == mesh.num_experts
        assert heat[mesh.popularity[layer].argmax()] == max(heat)


def test_an_experts_share_is_a_bar(
    url: str, mesh: MovingMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    head, *rows = ran(capsys, "2", "--url", url)
    assert head.split()[-2:] == ["OF", "LOAD"]
    bars = [row.count("█") for row in rows]
    hottest = int(mesh.popularity[2].argmax())
    assert bars[hottest] == max(bars) == 24


def test_more_experts_than_characters_keep_the_hottest() -> None:
    counts = np.ones(384, np.int64)
    counts[200] = 1000
    line = heat_line(counts).plain
    assert len(line) == CELLS
    assert line[200 * CELLS // 384] == "█"
    assert heat_line(np.zeros(4, np.int64)).plain == "▁▁▁▁"


@pytest.fixture
def kinds(mesh: MovingMesh) -> MovingMesh:
    load = np.ones((mesh.num_layers, mesh.num_experts))
    load[:, 3] = 50
    layers = tuple(range(mesh.num_layers))
    mesh.kinds["code"] = KindLoad("tiny", "code", None, layers, 1234, load)
    return mesh


@pytest.mark.usefixtures("kinds")
def test_the_load_of_one_kind_of_traffic(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    said, _, head, *rows = ran(capsys, "--url", url, "--kind", "code")
    assert said == "load of 1,234 tokens of kind code"
    assert head.split()[-1] == "LOAD"
    assert {row.split()[-1].index("█") for row in rows[:2]} == {3}
    _, _, _, *experts = ran(capsys, "1", "--url", url, "--kind", "code")
    assert experts[3].count("█") == 24
    told = json.loads("\n".join(ran(capsys, "--url", url, "--kind", "code", "--json")))
    assert (told["kind"], np.argmax(told["shares"][0])) == ("code", 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--kind", "coda"], "there was no traffic of kind coda"),
        (["--content", "image"], "--content is of one kind of traffic"),
    ],
)
@pytest.mark.usefixtures("kinds")
def test_load_that_there_is_none_of(
    url: str, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["experts", "--url", url, *arguments])
    assert ended.value.code
    assert says in capsys.readouterr().err
