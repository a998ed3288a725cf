"""`expertmesh top`: what it draws, and that it follows a mesh over HTTP."""

import io
import json
from collections.abc import Iterator

import pytest
from rich.console import Console

from orchestrator.batch.figures import figures
from orchestrator.cli.main import main
from orchestrator.cli.top import looks
from orchestrator.cli.top_view import Look, draw, sparks, tokens_per_s
from orchestrator.telemetry.report import report
from tests.dashboards.moving_mesh import CHANGE, LINES, VIEW, MovingMesh, moving_mesh, served
from tests.telemetry.test_batch import JOB, SUMS
from tests.telemetry.test_observer import looked

BATCH = figures(SUMS, [JOB], 0.0, 10.0)


def drawn(look: Look, width: int = 120, height: int = 60) -> str:
    console = Console(width=width, height=height, record=True, file=io.StringIO())
    console.print(draw(look, width, height))
    return console.export_text()


def look_at(mesh: MovingMesh, **more: object) -> Look:
    observer = looked(mesh, 3)
    assert observer.snapshot is not None
    said = report(
        observer.snapshot, 0.0, 0.0, 2.0, observer.points, {}, observer.happenings, 10, BATCH
    )
    said = json.loads(json.dumps(said))
    return Look(said, said["points"], **more)  # type: ignore[arg-type]


def test_one_screen_shows_all_that_works_and_all_that_changes() -> None:
    events = [line.model_dump(mode="json") for line in LINES]
    mesh = moving_mesh(dead={"cpu-0"})
    text = drawn(look_at(mesh, cluster=VIEW | {"transaction": CHANGE}, events=events))
    for words in (
        "test serves tiny: not ready",
        "nvidia-0     ready  nvidia emulated",
        "cpu-0        dead",
        "HOT EXPERT",
        "transaction 4 rebalance: preparing for 1 s, batch 2 of 3, 17 copies",
        "predicted gain 31.0%",
        "batch_1    in_progress  30/40",
        "first placement, on 4 shards",
    ):
        assert words in text, text
    assert "engine-0  ready" in text


def test_a_small_terminal_gets_what_matters_and_no_more_lines_than_it_has() -> None:
    look = look_at(
        moving_mesh(num_shards=64, dead={"cpu-7"}), cluster=VIEW | {"transaction": CHANGE}
    )
    text = drawn(look, 80, 24)
    assert len(text.rstrip().splitlines()) <= 24
    assert "cpu-7 " in text  # what does not serve comes first
    assert "and 60 more that serve" in text


def test_nothing_known_is_said() -> None:
    text = drawn(Look({"happenings": [], "engines": {}, "age_s": 0, "interval_s": 2}, []))
    assert "nothing is known of the mesh yet" in text


def test_rates_and_curves() -> None:
    points = [{"time_s": float(n), "generated": 100.0 * n} for n in range(5)]
    assert tokens_per_s(points) == 100.0  # the first look saw no engine yet
    assert tokens_per_s([]) == 0.0
    assert tokens_per_s([points[3], points[1] | {"time_s": 4.0}]) == 0.0
    assert sparks([None, 0.0, 0.5, 1.0]) == " ▁▅█"
    assert sparks([None, None]) == ""


@pytest.fixture
def url() -> Iterator[str]:
    with served(moving_mesh()) as address:
        yield address


def test_it_follows_a_mesh(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    follower = looks(url)
    seen = [next(follower) for _ in range(4)]
    follower.close()
    times = [point["time_s"] for point in seen[-1].points]
    assert len(times) >= 3
    assert times == sorted(set(times))
    assert seen[-1].cluster["transactions"] == 3
    with pytest.raises(SystemExit) as ended:
        main(["top", "--url", url])
    assert not ended.value.code
    assert "balancedness" in capsys.readouterr().out


def test_a_mesh_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["top", "--url", "http://127.0.0.1:1"])
    assert ended.value.code == 2
    assert "no mesh answers at http://127.0.0.1:1" in capsys.readouterr().err
