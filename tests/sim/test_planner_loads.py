"""The planner's own loads turn on a simulated mesh: how soon it is served as the planner would.

In virtual time: the real core decides and plans, copies load at the mesh's bandwidth, and the
dispatchers' own code shares out the tokens of each second by the epoch in force.
"""

import numpy as np
import pytest

from benchmarks.planner_served import served_balancedness
from benchmarks.planner_workloads import Case, draw
from orchestrator.control.keys import Copies, minus, number_of
from orchestrator.control.planning import Grid
from orchestrator.control.settings import Settings
from placement.planner import plan_placement
from tests.sim.mesh import Shape, SimMesh, keys_of

SHAPE = Shape(shards=8, layers=4, experts=64, capacity=44)
SETTINGS = Settings(rebalance_cooldown_s=5.0, load_bytes_per_s=20e6)
BEFORE_S = 60.0
GOAL_S = 15.0
GOAL = 0.95
"""Of what the planner's own table gives the dispatchers for the same load."""
FEW = 0.25
"""Part of all copies that are moved for it at most."""
SWAPPED = 0.5
"""Part of the experts that change places with others in popularity when the load turns."""


def loads(kind: str, seed: int) -> tuple[Case, np.ndarray, np.ndarray]:
    """The case, and int64 [L, E] tokens of a second before and after the load turns."""
    slots = np.full((SHAPE.layers, SHAPE.shards), SHAPE.capacity // SHAPE.layers - 1)
    case = Case(
        name=kind, layers=SHAPE.layers, experts=SHAPE.experts, top_k=8,
        speed=np.ones(SHAPE.shards), slots=slots, kind=kind, windows=2, batches=1,
        swap_at=1, swap_fraction=SWAPPED, seed=seed,
    )  # fmt: skip
    before, after = draw(case)[:, 0]
    return case, before, after


def served(mesh: SimMesh, case: Case, counts: np.ndarray) -> float:
    """Balancedness of what dispatchers make of these tokens now."""
    assert mesh.state is not None
    epoch = mesh.state.intent.epoch
    assert epoch is not None
    shards = [f"cpu-{number}" for number in range(SHAPE.shards)]
    return served_balancedness(case, Grid.of(keys_of(SHAPE)).array(epoch.copies, shards), counts)


def copies(mesh: SimMesh) -> Copies:
    """Of the epoch in force."""
    assert mesh.state is not None
    assert mesh.state.intent.epoch is not None
    return mesh.state.intent.epoch.copies


@pytest.mark.parametrize("kind", ["zipf", "lognormal"])
def test_a_load_that_turned_is_served_as_the_planner_would(kind: str) -> None:
    case, before, after = loads(kind, seed=3)
    mesh = SimMesh(1, SHAPE, SETTINGS)
    mesh.load = before / 1000
    mesh.start_controller()
    mesh.clock.run(BEFORE_S)
    mesh.load = after / 1000
    table = plan_placement(after, case.speed, case.slots)
    goal = GOAL * served_balancedness(case, table.experts, after)
    at_once = served(mesh, case, after)
    assert at_once < goal, "the load has turned far enough to show something"
    held = copies(mesh)
    mesh.clock.run(mesh.clock.now_s + GOAL_S)
    assert served(mesh, case, after) >= goal
    moved = minus(copies(mesh), held)
    assert 0 < number_of(moved) <= FEW * number_of(held), "each batch of copies takes its time"
