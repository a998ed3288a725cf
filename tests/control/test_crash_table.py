"""A controller killed at every point of a transaction: between event, journal and each action.

The journal is the real one. Each point is tried in a simulation of its own; the successor has to
end or roll back the transaction, and every key has to be served at the end.
"""

from pathlib import Path

import pytest

from orchestrator.control.journal import Journal
from orchestrator.control.lifecycle import Phase
from orchestrator.control.settings import Settings
from tests.sim.mesh import Shape, SimMesh
from tests.sim.scenario import check_healed

SHAPE = Shape(shards=4, engines=1, dispatchers=1, layers=2, experts=4, capacity=4, start_s=1.0)
SETTINGS = Settings(rebalance_cooldown_s=1e6, stable_s=60.0, start_timeout_s=30.0)
"""No rebalance for the load: the events of all runs are then the same up to the crash."""


def run(folder: Path, die_at: int | None) -> SimMesh:
    """Start, place, lose a shard, drain another one: every phase of every kind of change."""
    mesh = SimMesh(3, SHAPE, SETTINGS, open_journal=lambda: Journal(folder, "mesh"))
    mesh.die_at = die_at
    mesh.start_controller()
    mesh.clock.after(6.0, lambda: mesh.kill(mesh.processes["cpu-1"][-1], "SIGKILL"))
    mesh.clock.after(12.0, lambda: mesh.ask("one", "cordon", "cpu-3"))
    mesh.clock.run(20.0)
    mesh.clock.run(75.0)
    mesh.journal.close()
    return mesh


def interesting_points(folder: Path) -> list[int]:
    """Points at which a step with something to do is being done, in the run without a crash."""
    found: list[int] = []
    mesh = SimMesh(3, SHAPE, SETTINGS, open_journal=lambda: Journal(folder, "mesh"))
    act = mesh._act

    def counted(action: object) -> None:
        found.extend((mesh.points - 1, mesh.points, mesh.points + 1))
        act(action)  # type: ignore[arg-type]

    mesh._act = counted  # type: ignore[method-assign, assignment]
    mesh.start_controller()
    mesh.clock.after(6.0, lambda: mesh.kill(mesh.processes["cpu-1"][-1], "SIGKILL"))
    mesh.clock.after(12.0, lambda: mesh.ask("one", "cordon", "cpu-3"))
    mesh.clock.run(25.0)
    mesh.journal.close()
    return sorted({number for number in found if number > 0})


def test_the_controller_may_die_at_every_point(tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    points = interesting_points(folder)
    assert len(points) > 60
    for number in points:
        mesh = run(tmp_path / str(number), number)
        assert mesh.controllers == 2, f"point {number} was not reached"
        try:
            check_healed(mesh)
        except AssertionError as error:
            raise AssertionError(f"killed at point {number}: {error}") from error


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.COMMITTING, Phase.RETIRING])
def test_a_rebalance_is_ended_by_the_next_controller_whatever_phase_it_was_in(
    phase: Phase, tmp_path: Path
) -> None:
    mesh = SimMesh(5, SHAPE, SETTINGS, open_journal=lambda: Journal(tmp_path, "mesh"))
    mesh.start_controller()
    mesh.clock.run(8.0)
    assert mesh.state is not None
    mesh.ask("one", "scale", "cpu", 5)
    while not (
        (transaction := mesh.state.intent.transaction) is not None
        and transaction.id > 1
        and transaction.phase is phase
    ):
        mesh.clock.run(mesh.clock.now_s + 0.005)
        assert mesh.clock.now_s < 60.0
    number = mesh.state.intent.epoch.id.number if mesh.state.intent.epoch else 0
    mesh.kill_controller(back_s=1.0)
    mesh.clock.run(mesh.clock.now_s + 40.0)
    assert mesh.state is not None
    assert mesh.state.intent.transaction is None
    assert mesh.state.intent.term == 2
    assert mesh.state.intent.epoch is not None
    assert mesh.state.intent.epoch.id.number >= number
    assert mesh.state.intent.epoch.copies.keys() >= {"cpu-4"}
    check_healed(mesh)
    mesh.journal.close()
