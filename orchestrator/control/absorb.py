"""Takes events in as facts. What follows from the facts is decided elsewhere."""

from orchestrator.control import supervision
from orchestrator.control.actions import ProbeNow
from orchestrator.control.events import (
    ComponentDied,
    ComponentSaid,
    DispatcherGone,
    DispatcherSaid,
    EnginesLoad,
    Event,
    LinkLost,
    LoadSeen,
    PlanMade,
    ProbeMissed,
    Published,
    ShardWrong,
    Tick,
    VerbAsked,
)
from orchestrator.control.lifecycle import SERVING, Kind, Life, Wanted
from orchestrator.control.load_policy import take_load, take_plan
from orchestrator.control.state import Component, Description, Dispatcher, Place
from orchestrator.control.turn import Turn
from orchestrator.control.verbs import take_verb


def absorb(turn: Turn, event: Event) -> None:  # noqa: PLR0912 - one case per event
    """Change the facts as `event` says; `turn.changed` where a decision may follow."""
    match event:
        case ComponentSaid(id=id, generation=generation, said=said):
            _component_said(turn, id, generation, said)
        case ProbeMissed(id=id, generation=generation):
            _probe_missed(turn, id, generation)
        case ComponentDied(id=id, generation=generation, why=why):
            supervision.confirm(turn, id, generation)
            if _is_current(turn, id, generation):
                supervision.lose(turn, id, why)
        case LinkLost(shard=shard, incarnation=incarnation, dispatcher=dispatcher):
            _link_lost(turn, shard, incarnation, dispatcher)
        case ShardWrong(shard=shard, incarnation=incarnation, dispatcher=dispatcher):
            _shard_wrong(turn, shard, incarnation, dispatcher)
        case DispatcherSaid():
            _dispatcher_said(turn, event)
        case DispatcherGone(id=id):
            left = {other: one for other, one in turn.facts.dispatchers.items() if other != id}
            turn.change_facts(dispatchers=left)
            turn.changed = True
        case Published(epoch=epoch):
            if turn.facts.published is None or epoch > turn.facts.published:
                turn.change_facts(published=epoch)
                turn.changed = True
        case LoadSeen(counts=counts, traffic=traffic, busy=busy):
            take_load(turn, counts, traffic, busy)
        case EnginesLoad(load=load):
            turn.change_facts(engine_load=load)
        case PlanMade(request=request, proposal=proposal, why=why):
            take_plan(turn, request, proposal, why)
        case VerbAsked():
            take_verb(turn, event)
        case Tick():
            turn.changed = True


def _is_current(turn: Turn, id: str, generation: int) -> bool:
    component = turn.facts.components.get(id)
    return component is not None and component.generation == generation


def _component_said(turn: Turn, id: str, generation: int, said: Description) -> None:
    place, component = turn.intent.places.get(id), turn.facts.components.get(id)
    if place is None or component is None:
        return
    gone = component.life in (Life.DEAD, Life.FAILED, Life.STOPPED)
    if generation < component.generation or (gone and generation == component.generation):
        supervision.add_stray(turn, id, place.kind, generation)
        return
    if generation != component.generation or component.ending_s is not None:
        return
    late = said.incarnation == component.said.incarnation
    if late and said.revision < component.said.revision:
        return
    _take_description(turn, place, component, said)


def _take_description(turn: Turn, place: Place, component: Component, said: Description) -> None:
    expected = turn.intent.fingerprint
    if said.fingerprint and expected and said.fingerprint != expected:
        why = f"it holds another checkpoint ({said.fingerprint}, the mesh serves {expected})"
        supervision.end(turn, place.id, why, kill=True)
        return
    turn.changed |= said != component.said or bool(component.misses)
    turn.change_component(place.id, said=said, heard_s=turn.now_s, misses=0)
    turn.solved(place.id)
    if component.life is Life.STARTING and said.serving:
        turn.move(place.id, Life.READY, "it answers")
        turn.note(
            place.id, "ready", f"{place.kind} {place.id} generation {component.generation} is ready"
        )
    elif component.life is Life.SUSPECT:
        stop = place.wanted is not Wanted.RUN
        turn.move(place.id, Life.DRAINING if stop else Life.READY, "it answers again")
        turn.note(place.id, "ready", f"{place.kind} {place.id} answers again")


def _probe_missed(turn: Turn, id: str, generation: int) -> None:
    if not _is_current(turn, id, generation):
        return
    component = turn.facts.components[id]
    if component.life in SERVING or component.life is Life.SUSPECT:
        misses = component.misses + 1
        turn.change_component(id, misses=misses)
        settings = turn.settings
        turn.changed |= misses >= min(settings.misses_to_suspect, settings.misses_of_lost_node)


def _link_lost(turn: Turn, shard: str, incarnation: int, dispatcher: str) -> None:
    component = turn.facts.components.get(shard)
    if component is None or component.said.incarnation != incarnation:
        return
    turn.act(
        ProbeNow(
            id=f"probe/{shard}/{component.generation}/{turn.now_s:.6f}",
            step="probe",
            reason=f"dispatcher {dispatcher} lost its link to {shard}",
            component=shard,
            generation=component.generation,
        )
    )


def _shard_wrong(turn: Turn, shard: str, incarnation: int, dispatcher: str) -> None:
    """Quarantine: the process is ended and replaced. Told again until it is gone."""
    component = turn.facts.components.get(shard)
    if component is None or component.said.incarnation != incarnation:
        return
    if component.ending_s is not None or component.life not in (*SERVING, Life.SUSPECT):
        return
    why = (
        f"dispatcher {dispatcher} found its answers wrong: they were no finite numbers where "
        "another replica's were, or had another shape than asked for"
    )
    turn.note(shard, "quarantine", f"shard {shard} is taken out and replaced: {why}")
    supervision.end(turn, shard, why, kill=True)


def _dispatcher_said(turn: Turn, event: DispatcherSaid) -> None:
    before = turn.facts.dispatchers.get(event.id)
    adopted = event.adopted
    if before is not None and before.adopted is not None:
        adopted = max(before.adopted, adopted or before.adopted)
    turn.change_facts(
        dispatchers={**turn.facts.dispatchers, event.id: Dispatcher(adopted, turn.now_s)}
    )
    turn.changed |= before is None or before.adopted != adopted
    for shard, served in event.served.items():
        place = turn.intent.places.get(shard)
        if place is not None and place.kind is Kind.SHARD and shard in turn.facts.components:
            supervision.weigh(turn, shard, served)
