"""One simulation from a seed: start, random faults, healing, and what must be true at the end."""

from collections.abc import Callable

from orchestrator.control.keys import NO_KEYS
from orchestrator.control.lifecycle import Life
from orchestrator.control.plan_request import PlanRequest, Proposal
from orchestrator.control.planning import make_plan
from orchestrator.control.rules import broken
from orchestrator.control.settings import Settings
from orchestrator.control.state import State
from orchestrator.control.turn import Turn
from tests.sim.faults import Faults
from tests.sim.invariants import Breach
from tests.sim.mesh import Shape, SimMesh

TRACE_LINES = 400


class SimulationFailed(AssertionError):
    """Names the seed that replays it and the end of the event trace."""


def simulate(
    seed: int,
    shape: Shape,
    *,
    calm_s: float = 25.0,
    faults_s: float = 150.0,
    heal_s: float = 240.0,
    pause_s: float = 4.0,
    settings: Settings | None = None,
    plan: Callable[[PlanRequest], Proposal] = make_plan,
    inspect: Callable[[SimMesh], None] = lambda _: None,
) -> SimMesh:
    """Run it. calm_s: time to start in before the faults begin.

    Raises:
        SimulationFailed: with the trace, and the call that replays it.
    """
    mesh = SimMesh(seed, shape, settings, plan)
    try:
        mesh.start_controller()
        mesh.clock.run(calm_s)
        faults = Faults(mesh, pause_s)
        faults.begin()
        mesh.clock.run(calm_s + faults_s)
        faults.stop()
        mesh.clock.run(mesh.clock.now_s + heal_s)
        check_healed(mesh)
        inspect(mesh)
    except Exception as error:
        trace = "\n".join(mesh.trace[-TRACE_LINES:])
        raise SimulationFailed(
            f"{trace}\n{type(error).__name__}: {error}\n"
            f"replay: simulate({seed}, {shape!r}), at {mesh.clock.now_s:.3f} s"
        ) from error
    return mesh


def check_healed(mesh: SimMesh) -> None:
    """After the faults: everything runs, every key is served to every dispatcher, nothing is left
    over; where shards or memory are lacking for good, that is said."""
    state = mesh.state
    if state is None:
        raise Breach("healed: no controller")
    if state.intent.transaction is not None:
        raise Breach(f"healed: transaction {state.intent.transaction.id} never ends")
    if state.intent.rolling is not None and "rolling restart" not in state.facts.problems:
        raise Breach(f"healed: the restart of {state.intent.rolling.target} never ends")
    # A shard drains for as long as the others have no room for what it holds.
    lacking = {"plan", "experts"} & set(state.facts.problems)
    allowed = {Life.READY, Life.FAILED, *([Life.DRAINING] if lacking else [])}
    for id, component in state.facts.components.items():
        if component.life not in allowed:
            raise Breach(f"healed: {id} is {component.life}: {component.why}")
    for place, processes in mesh.processes.items():
        if sum(process.alive for process in processes) > 1:
            raise Breach(f"healed: {place} has several processes")
    if not lacking:
        _check_service(mesh, state)


def _check_service(mesh: SimMesh, state: State) -> None:
    held = NO_KEYS.union(*(process.holdings for process in mesh.all_processes()))
    missing = state.intent.keys - held
    if missing:
        raise Breach(f"healed: {len(missing)} keys are held by nobody")
    for dispatcher in mesh.dispatchers:
        served = dispatcher.served(mesh.processes) if dispatcher.epoch else NO_KEYS
        unserved = len(state.intent.keys - served)
        if unserved:
            raise Breach(f"healed: dispatcher {dispatcher.id} cannot get {unserved} keys")
    assert state.intent.epoch is not None
    astray = broken(state.intent, sorted(state.intent.planned_for))
    if astray:
        raise Breach(f"healed: {len(astray)} keys are where they may not be")
    whole = state.intent.planned.keys() <= {
        id for id, component in state.facts.components.items() if component.life is Life.READY
    }
    for process in mesh.all_processes():
        cordoned = Turn(state, 0.0).cordoned(process.place)
        planned = NO_KEYS if cordoned else state.intent.planned.get(process.place, NO_KEYS)
        if whole and not state.facts.problems and planned - process.holdings:
            raise Breach(f"healed: {process.place} does not hold all that is planned for it")
        named = state.intent.epoch.copies.get(process.place, NO_KEYS)
        if process.holdings - named:
            raise Breach(f"healed: {process.place} holds copies that no epoch names")
