"""What becomes of components that do not answer, die, or are slow.

Killed: replaced at once, then with growing pauses, until the restart budget is spent and the place
is given up for everybody to see. Hung: suspected after several probes (weight 0, nothing moves),
replaced after a limit; never while its clients still get answers. Slow: its weight follows the time
its answers take.
"""

from orchestrator.control.actions import StartComponent, StopComponent
from orchestrator.control.events import Served
from orchestrator.control.keys import all_keys, minus
from orchestrator.control.lifecycle import SERVING, Kind, Life, Wanted
from orchestrator.control.state import NEVER, UNKNOWN, Component, Place, Stray
from orchestrator.control.turn import Turn

LEAST_WEIGHT = 0.05
"""A slow shard still gets rows: or one would not see that it is quick again."""

WEIGHT_MEMORY = 0.5
"""Weight of the past in a shard's measured slowness, per report."""


def supervise(turn: Turn) -> None:
    """Look after every place."""
    _hunt_strays(turn)
    for id, place in list(turn.intent.places.items()):
        component = turn.facts.components.get(id)
        if component is None:
            _fill(turn, place)
        elif component.ending_s is not None:
            _end(turn, place, component)
        elif component.life is Life.STARTING:
            _start(turn, place, component)
        elif component.life is Life.SUSPECT:
            _doubt(turn, place, component)
        elif component.life in SERVING:
            _serve(turn, place, component)
        elif component.life in (Life.DEAD, Life.FAILED):
            _replace(turn, place, component)


def lose(turn: Turn, id: str, why: str) -> None:
    """A component's process has ended: decide when its place is filled again."""
    place, component = turn.intent.places[id], turn.facts.components[id]
    if component.life in (Life.DEAD, Life.FAILED, Life.STOPPED):
        return
    ending = component.ending_s is not None
    if ending and place.wanted is Wanted.STOP and component.life in (Life.DRAINING, Life.STARTING):
        turn.move(id, Life.STOPPED, component.ending_why)
        turn.note(id, "stopped", f"{place.kind} {id} ended as asked: {component.ending_why}")
        turn.forget(id)
        return
    served_s = turn.now_s - component.since_s if component.life in SERVING else 0.0
    restarts = 1 if served_s >= turn.settings.stable_s else place.restarts + 1
    if ending and turn.restarts(id):
        restarts = place.restarts  # it did not die by itself
    pause_s = _pause_s(turn, restarts)
    turn.move(id, Life.DEAD, why)
    turn.change_component(
        id, said=UNKNOWN, command=None, ending_s=None, restart_at_s=turn.now_s + pause_s, misses=0
    )
    wanted = Wanted.RUN if place.wanted is Wanted.RESTART else place.wanted
    turn.change_place(id, restarts=restarts, wanted=wanted)
    when = f"in {pause_s:g} s" if pause_s else "now"
    turn.note(id, "dead", f"{place.kind} {id} is dead: {why}; replaced {when}")


def end(turn: Turn, id: str, why: str, *, kill: bool) -> None:
    """Ask for the end of a component's process."""
    component = turn.facts.components[id]
    if component.ending_s is None:
        turn.change_component(
            id, ending_s=turn.now_s, ending_why=why, asked_s=turn.now_s, killing=kill
        )
        turn.changed = True
    place = turn.intent.places[id]
    _ask_end(turn, id, place.kind, turn.facts.components[id].generation, why, kill=kill)


def confirm(turn: Turn, id: str, generation: int) -> None:
    """A process that was replaced has ended, too."""
    left = frozenset(s for s in turn.intent.strays if (s.id, s.generation) != (id, generation))
    if left != turn.intent.strays:
        turn.change_intent(strays=left)
        turn.note(id, "stray", f"{id} generation {generation}, replaced earlier, has ended")


def add_stray(turn: Turn, id: str, kind: Kind, generation: int) -> None:
    """A process may live on though its place is filled again: its end is asked for until seen."""
    stray = Stray(id, kind, generation)
    if stray not in turn.intent.strays:
        turn.change_intent(strays=turn.intent.strays | {stray})
        turn.change_facts(strays_asked_s=NEVER)
        turn.changed = True


def _hunt_strays(turn: Turn) -> None:
    if turn.now_s - turn.facts.strays_asked_s < turn.settings.kill_timeout_s:
        return
    turn.change_facts(strays_asked_s=turn.now_s)
    for id, kind, generation in sorted(turn.intent.strays):
        _ask_end(turn, id, kind, generation, "its place was filled again", kill=True)


def weigh(turn: Turn, id: str, served: Served) -> None:
    """Take in when a shard last answered a client, and how much longer it took than predicted."""
    component = turn.facts.components[id]
    measured = min(1.0, 1.0 / max(served.slowness, 1e-3))
    weight = WEIGHT_MEMORY * component.weight + (1 - WEIGHT_MEMORY) * measured
    answered_s = max(component.answered_s, turn.now_s - served.quiet_s)
    turn.change_component(id, weight=max(weight, LEAST_WEIGHT), answered_s=answered_s)


def _ask_end(turn: Turn, id: str, kind: Kind, generation: int, why: str, *, kill: bool) -> None:
    turn.act(
        StopComponent(
            id=f"{'kill' if kill else 'stop'}/{id}/{generation}",
            step="end",
            reason=why,
            component=id,
            kind=kind,
            generation=generation,
            kill=kill,
        )
    )


def _pause_s(turn: Turn, restarts: int) -> float:
    if restarts <= 1:
        return 0.0
    doubled = turn.settings.restart_pause_s * 2.0 ** (restarts - 2)
    return min(doubled, turn.settings.longest_pause_s)


def _fill(turn: Turn, place: Place) -> None:
    """A place without a process: start one, or adopt the one an earlier controller started."""
    if place.failed:
        component = Component(place.generation, Life.FAILED, turn.now_s, why=place.failed)
        turn.set_component(place.id, component)
        return
    if place.wanted is Wanted.STOP and place.generation == 0:
        turn.set_component(place.id, Component(0, Life.STARTING, turn.now_s))
        turn.forget(place.id)
        return
    reason = "adopt it, or start it if it is gone"
    stray = Stray(place.id, place.kind, place.generation) in turn.intent.strays
    adopting = place.generation > 0 and not stray
    if not adopting:
        turn.change_place(place.id, generation=place.generation + 1)
        reason = f"pool {place.pool or place.kind} is to have it"
    generation = turn.intent.places[place.id].generation
    component = Component(generation, Life.STARTING, turn.now_s, why=reason, adopting=adopting)
    turn.set_component(place.id, component)
    turn.changed = True
    _ask_start(turn, place.id, reason)


def _ask_start(turn: Turn, id: str, reason: str) -> None:
    place = turn.intent.places[id]
    turn.change_component(id, asked_s=turn.now_s)
    turn.act(
        StartComponent(
            id=f"start/{id}/{place.generation}",
            step="start",
            reason=reason,
            component=id,
            kind=place.kind,
            pool=place.pool,
            generation=place.generation,
        )
    )


def _start(turn: Turn, place: Place, component: Component) -> None:
    waited_s = turn.now_s - component.since_s
    engine = place.kind is Kind.ENGINE
    limit_s = turn.settings.engine_start_timeout_s if engine else turn.settings.start_timeout_s
    if waited_s >= limit_s:
        end(turn, place.id, f"it did not start within {limit_s:g} s", kill=True)
    elif place.wanted is Wanted.STOP and place.id not in turn.epoch_copies():
        end(turn, place.id, "no longer wanted", kill=True)
    elif turn.now_s - component.asked_s >= turn.settings.retry_s:
        _ask_start(turn, place.id, component.why or "asked again")


def _doubt(turn: Turn, place: Place, component: Component) -> None:
    if turn.answers_clients(component):
        return
    since_s = max(component.since_s, turn.facts.cut_off_until_s)
    silent_s, limit_s = turn.now_s - since_s, turn.settings.suspect_limit_s
    if silent_s < limit_s:
        return
    why = f"silent for {silent_s:.0f} s (limit {limit_s:g} s), to dispatchers too"
    end(turn, place.id, why, kill=True)
    if turn.is_lost(component):  # nobody there can confirm it
        _fill_unconfirmed(turn, place, component, f"{why}, as everything on {component.said.node}")


def _serve(turn: Turn, place: Place, component: Component) -> None:
    if component.misses >= turn.settings.misses_to_suspect or turn.is_lost(component):
        _suspect(turn, place, component)
        return
    stable_s = turn.settings.stable_s
    if place.restarts and turn.now_s - component.since_s >= stable_s:
        turn.change_place(place.id, restarts=0)
    if place.wanted is not Wanted.RUN:
        _drain(turn, place, component)
    elif component.life is Life.DRAINING:
        turn.move(place.id, Life.READY, "wanted again")


def _suspect(turn: Turn, place: Place, component: Component) -> None:
    seen = f"{component.misses} probes in a row were not answered"
    if turn.answers_clients(component):
        turn.problem(place.id, f"{place.kind} {place.id}: {seen}, but its clients get answers")
        return
    limit_s = turn.settings.suspect_limit_s
    turn.move(place.id, Life.SUSPECT, seen)
    turn.note(
        place.id,
        "suspect",
        f"{place.kind} {place.id} is suspected: {seen}; it gets no rows that others can take, and "
        f"is replaced if it stays silent for {limit_s:g} s",
    )


def _drain(turn: Turn, place: Place, component: Component) -> None:
    """Serve until no epoch names it and no key has its only copy there, then stop."""
    if component.life is Life.READY:
        why = "no longer wanted" if place.wanted is Wanted.STOP else "it is restarted"
        turn.move(place.id, Life.DRAINING, why)
        turn.note(place.id, "drain", f"{place.kind} {place.id} drains: {why}")
    epoch = turn.epoch_copies()
    if place.id in epoch:
        return
    others = turn.serving_copies()
    others.pop(place.id, None)
    only_here = minus(
        {place.id: component.said.holdings & turn.intent.keys}, {place.id: all_keys(others)}
    )
    if not only_here:
        end(turn, place.id, "drained: no epoch names it", kill=False)


def _end(turn: Turn, place: Place, component: Component) -> None:
    """Ask again, in the end harder; after that the place is filled without a confirmation."""
    assert component.ending_s is not None
    grace_s = 0.0 if component.killing else turn.settings.drain_timeout_s
    lasted_s = turn.now_s - component.ending_s
    if lasted_s >= grace_s + turn.settings.kill_timeout_s:
        why = f"{component.ending_why}; its end was not confirmed"
        _fill_unconfirmed(turn, place, component, why)
    elif turn.now_s - component.asked_s >= turn.settings.retry_s:
        turn.change_component(place.id, asked_s=turn.now_s)
        _ask_end(
            turn,
            place.id,
            place.kind,
            component.generation,
            component.ending_why,
            kill=lasted_s >= grace_s,
        )


def _fill_unconfirmed(turn: Turn, place: Place, component: Component, why: str) -> None:
    add_stray(turn, place.id, place.kind, component.generation)
    lose(turn, place.id, why)


def _replace(turn: Turn, place: Place, component: Component) -> None:
    if place.wanted is Wanted.STOP:
        turn.move(place.id, Life.STOPPED, "no longer wanted")
        turn.note(place.id, "stopped", f"{place.kind} {place.id} was dead and is no longer wanted")
        turn.forget(place.id)
        return
    if place.failed:
        if component.life is Life.DEAD:
            turn.move(place.id, Life.FAILED, place.failed)
        return
    if component.life is Life.DEAD and place.restarts > turn.settings.restart_budget:
        _give_up(turn, place, component)
    elif component.life is Life.FAILED or turn.now_s >= component.restart_at_s:
        generation = place.generation + 1
        reason = f"replaces generation {place.generation}: {component.why}"
        turn.change_place(place.id, generation=generation)
        turn.move(place.id, Life.STARTING, reason)
        turn.change_component(
            place.id, generation=generation, answered_s=NEVER, weight=1.0, adopting=False
        )
        turn.note(place.id, "start", f"{place.kind} {place.id} generation {generation} {reason}")
        _ask_start(turn, place.id, reason)


def _give_up(turn: Turn, place: Place, component: Component) -> None:
    budget = turn.settings.restart_budget
    why = f"died {place.restarts} times in a row (budget {budget}), last: {component.why}"
    turn.change_place(place.id, failed=why)
    turn.move(place.id, Life.FAILED, why)
    turn.problem(
        place.id,
        f"{place.kind} {place.id} is given up: {why}; `expertmesh restart {place.id}` tries again",
    )
