"""A simulated mesh around the real core: processes, dispatchers, network, journal, controllers.

The controller here does what `runner` does: takes events in, journals the intent, acts. It can die
between any two of those, and a successor begins with what the journal holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

import numpy as np

from orchestrator.control.actions import (
    Action,
    Answer,
    Cancel,
    Evict,
    MakePlan,
    Note,
    Prepare,
    ProbeNow,
    Publish,
    Retire,
    StartComponent,
    StopComponent,
)
from orchestrator.control.events import (
    ComponentDied,
    ComponentSaid,
    DispatcherGone,
    DispatcherSaid,
    Event,
    LinkLost,
    LoadSeen,
    PlanMade,
    ProbeMissed,
    Published,
    Served,
    Tick,
    VerbAsked,
)
from orchestrator.control.journal import JournalError
from orchestrator.control.keys import EXPERT, Keys, PlacedKey
from orchestrator.control.lifecycle import Kind, Life
from orchestrator.control.plan_request import PlanRequest, Proposal
from orchestrator.control.planning import NoPlan, make_plan
from orchestrator.control.settings import Settings
from orchestrator.control.state import Intent, Place, State
from orchestrator.control.step import recovered, step
from tests.sim.clock import Clock
from tests.sim.dispatcher import SimDispatcher
from tests.sim.invariants import Invariants
from tests.sim.network import CONTROLLER, Network
from tests.sim.process import Process

PROBE_S = 1.0
PROBE_TIMEOUT_S = 0.5
TICK_S = 0.5
REPORT_S = 2.0


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a simulated mesh is. capacity: keys per shard."""

    shards: int = 8
    gpus: int = 0
    """Shards of a second pool."""
    engines: int = 1
    routers: int = 0
    dispatchers: int = 2
    layers: int = 2
    experts: int = 8
    capacity: int = 6
    start_s: float = 10.0
    nodes: int = 3
    batch_s: float = 0.0
    """How long the controller gathers events before it takes them in together."""
    crash: float = 0.0
    """Chance that the controller dies at each point between event, journal and action."""
    load_fails: float = 0.0


def keys_of(shape: Shape) -> Keys:
    return frozenset(
        PlacedKey(EXPERT, layer, expert)
        for layer in range(shape.layers)
        for expert in range(shape.experts)
    )


class Crash(Exception):
    """The controller dies here."""


class MemoryJournal:
    """Keeps what was written; refuses while `full`."""

    def __init__(self) -> None:
        self.intent: Intent | None = None
        self.full = False

    def read(self) -> Intent | None:
        return self.intent

    def write(self, intent: Intent, notes: Sequence[Note], wall_s: float) -> None:
        if self.full:
            raise JournalError("the disk is full")
        self.intent = intent

    def close(self) -> None:
        """Nothing to let go of."""


class SimJournal(Protocol):
    """`Journal` or `MemoryJournal`."""

    def read(self) -> Intent | None: ...

    def write(self, intent: Intent, notes: Sequence[Note], wall_s: float) -> None: ...

    def close(self) -> None: ...


class SimMesh:
    """Everything of one simulation; `trace` is what a failing seed prints."""

    def __init__(
        self,
        seed: int,
        shape: Shape,
        settings: Settings | None = None,
        plan: Callable[[PlanRequest], Proposal] = make_plan,
        open_journal: Callable[[], SimJournal] | None = None,
    ) -> None:
        self.random = Random(seed)
        self.clock = Clock()
        self.network = Network(self.clock, self.random)
        self.shape = shape
        self.settings = settings or Settings(suspect_limit_s=8.0, stable_s=60.0)
        self.plan = plan
        self.processes: dict[str, list[Process]] = {}
        self.dispatchers = [SimDispatcher(f"engine-{n}") for n in range(shape.dispatchers)]
        self.trace: list[str] = []
        self.nodes: dict[str, str] = {}
        """Where processes of some places start, in place of a node by their number."""
        self.answers: dict[str, bool] = {}
        self.texts: dict[str, str] = {}
        """What was answered to the verbs, by request."""
        self.controllers = 0
        self.state: State | None = None
        self.crash = shape.crash
        self.plans = 0
        self.load = np.ones((shape.layers, shape.experts))
        memory = MemoryJournal()
        self._open_journal = open_journal or (lambda: memory)
        self.journal = self._open_journal()
        first = Intent(term=0, fingerprint="model", keys=keys_of(shape), places=self._places())
        self.journal.write(first, (), 0.0)
        self.journal.close()
        self.die_at: int | None = None
        """Number of the point at which the controller dies, once."""
        self.points = 0
        self.invariants = Invariants(self)
        self._inbox: list[Callable[[float], Event]] = []
        self._awake = False
        self._said: dict[str, object] = {}
        self._probing: set[tuple[str, int]] = set()

    def _places(self) -> dict[str, Place]:
        shape = self.shape
        places = [Place(f"cpu-{n}", Kind.SHARD, "cpu") for n in range(shape.shards)]
        places += [Place(f"gpu-{n}", Kind.SHARD, "gpu") for n in range(shape.gpus)]
        places += [Place(f"engine-{n}", Kind.ENGINE, "engine") for n in range(shape.engines)]
        places += [Place(f"router-{n}", Kind.ROUTER, "router") for n in range(shape.routers)]
        return {place.id: place for place in places}

    # -- life of controllers

    def start_controller(self) -> None:
        """A new controller: the journal's intent, a term of its own, no facts."""
        self.controllers += 1
        self.journal = self._open_journal()
        intent = self.journal.read()
        assert intent is not None
        self.state = recovered(intent, self.settings, self.clock.now_s)
        self._write(self.state, ())  # the term is on disk before anything is done in it
        self._inbox = []
        self._probing = set()
        self.say(f"controller {self.controllers} starts, term {self.state.intent.term}")
        number = self.controllers
        self._every(TICK_S, number, lambda: self.tell(Tick))
        self._every(PROBE_S, number, self._probe_all)
        self._every(1.0, number, self._load)
        for dispatcher in self.dispatchers:
            self.clock.after(self.random.uniform(0.1, 2.0), lambda d=dispatcher: self._connect(d))

    def kill_controller(self, back_s: float = 2.0) -> None:
        if self.state is None:
            return
        self.say("controller is killed")
        self.state = None
        self.journal.close()
        self.clock.after(back_s, self.start_controller)

    def _every(self, pause_s: float, number: int, do: Callable[[], None]) -> None:
        def again() -> None:
            if self.state is not None and self.controllers == number:
                do()
                self.clock.after(pause_s, again)

        self.clock.after(pause_s * self.random.random(), again)

    # -- the loop: event, journal, act

    def tell(self, event: Callable[[float], Event]) -> None:
        """Give the controller an event; what arrives together is taken in together."""
        if self.state is None:
            return
        self._inbox.append(event)
        if not self._awake:
            self._awake = True
            self.clock.after(self.shape.batch_s, self._work)

    def _work(self) -> None:
        self._awake = False
        inbox, self._inbox = self._inbox, []
        if self.state is None or not inbox:
            return
        events = [event(self.clock.now_s) for event in inbox]
        self.trace.extend(
            f"{self.clock.now_s:9.3f} > {_brief(event)}" for event in events if self._tells(event)
        )
        try:
            before = self.state
            self.state, actions = step(before, *events)
            self._point()
            told = any(isinstance(action, Note) for action in actions)
            changed = told or self.state.intent is not before.intent
            if changed and not self._write(self.state, actions):
                self.state = before  # nothing may be done that is not written
                return
            self._point()
            for action in actions:
                self.trace.append(f"{self.clock.now_s:9.3f} < {_short(action)}")
            self.invariants.after_step(before, events, self.state, actions)
            for action in actions:
                self._act(action)
                self._point()
        except Crash:
            self.say("controller dies in the middle of its work")
            self.kill_controller()

    def _write(self, state: State, actions: Sequence[Action]) -> bool:
        try:
            notes = [action for action in actions if isinstance(action, Note)]
            self.journal.write(state.intent, notes, self.clock.now_s)
        except JournalError as error:
            self.say(f"not written: {error}")
            return False
        return True

    def _point(self) -> None:
        self.points += 1
        if self.points == self.die_at:
            raise Crash
        if self.crash and self.random.random() < self.crash:
            raise Crash

    def _tells(self, event: Event) -> bool:
        """Whether the event belongs into the trace: the others repeat what was said before."""
        if isinstance(event, Tick | LoadSeen):
            return False
        if not isinstance(event, ComponentSaid | DispatcherSaid):
            return True
        news = event.said if isinstance(event, ComponentSaid) else event.adopted
        who = f"{type(event).__name__} {event.id}"
        known, self._said[who] = self._said.get(who), news
        return known != news

    def say(self, text: str) -> None:
        self.trace.append(f"{self.clock.now_s:9.3f} * {text}")

    # -- actions

    def _act(self, action: Action) -> None:
        match action:
            case StartComponent():
                self._start(action)
            case StopComponent():
                self._stop(action)
            case ProbeNow():
                self._probe(action.component, action.generation)
            case Prepare() | Retire() | Cancel():
                self._to_process(
                    action.shard, action.generation, lambda p: self._command(p, action)
                )
            case Publish():
                self._publish(action)
            case Evict():
                for dispatcher in self.dispatchers:
                    if dispatcher.id == action.dispatcher:
                        self._disconnect(dispatcher)
            case MakePlan():
                self._make_plan(action)
            case Answer():
                self.answers[action.request] = action.done
                self.texts[action.request] = action.reason
            case Note():
                pass

    def _start(self, action: StartComponent) -> None:
        living = self._living(action.component, action.generation)
        if living is None and not self._was_started(action.component, action.generation):
            number = int(action.component.rpartition("-")[2])
            living = Process(
                self.clock,
                self.random,
                action.component,
                action.generation,
                action.kind,
                node=self.nodes.get(action.component, f"node-{number % self.shape.nodes}"),
                capacity=self.shape.capacity,
                start_s=self.shape.start_s * self.random.uniform(0.5, 1.5),
                load_fails=self.shape.load_fails,
                check=self.invariants.after_change,
                origin=self.settings.origins.get(action.pool, ""),
            )
            self.processes.setdefault(action.component, []).append(living)
        self._probe(action.component, action.generation)

    def _stop(self, action: StopComponent) -> None:
        place, generation = action.component, action.generation
        if self._living(place, generation) is None and self.network.connected(CONTROLLER, place):
            self.tell(lambda now_s: ComponentDied(now_s, place, generation, "process ended"))
        self._to_process(place, generation, lambda p: self._end(p, action.kill))

    def _was_started(self, place: str, generation: int) -> bool:
        return any(p.generation == generation for p in self.processes.get(place, ()))

    def _living(self, place: str, generation: int) -> Process | None:
        for process in self.processes.get(place, ()):
            if process.generation == generation and process.alive:
                return process
        return None

    def _to_process(self, place: str, generation: int, do: Callable[[Process], None]) -> None:
        process = self._living(place, generation)
        if process is not None:
            self.network.send(CONTROLLER, place, lambda: do(process))

    def _command(self, process: Process, command: Prepare | Retire | Cancel) -> None:
        def obey() -> None:
            process.obey(command)
            self.invariants.obeyed_twice(process, command)
            self._answer(process)

        process.receive(obey)

    def _answer(self, process: Process) -> None:
        said = process.describe()
        self._to_controller(
            process.place,
            lambda now_s: ComponentSaid(now_s, process.place, process.generation, said),
        )

    def _end(self, process: Process, kill: bool) -> None:
        if kill or not process.hung:
            self.kill(process, "ended as asked")

    def kill(self, process: Process, why: str) -> None:
        """SIGKILL. Clients see the end of their links; the controller sees it when it asks."""
        if not process.alive:
            return
        process.alive = False
        self.say(f"{process.place} generation {process.generation} ends: {why}")
        for dispatcher in self.dispatchers:
            if dispatcher.epoch and process.place in dispatcher.epoch.copies:
                self._to_controller(
                    dispatcher.id,
                    lambda now_s, d=dispatcher.id: LinkLost(
                        now_s, process.place, process.incarnation, d
                    ),
                )

    def _to_controller(self, sender: str, event: Callable[[float], Event]) -> None:
        number = self.controllers
        self.network.send(
            sender, CONTROLLER, lambda: self.controllers == number and self.tell(event)
        )

    def _make_plan(self, action: MakePlan) -> None:
        self.plans += 1

        def done() -> None:
            try:
                proposal, why = self.plan(action.plan), ""
            except NoPlan as error:
                proposal, why = None, str(error)
            self.tell(lambda now_s: PlanMade(now_s, action.request, proposal, why))

        number = self.controllers
        self.clock.after(
            self.random.uniform(0.05, 1.0), lambda: self.controllers == number and done()
        )

    # -- probes

    def _probe_all(self) -> None:
        assert self.state is not None
        for id, component in self.state.facts.components.items():
            gone = component.life in (Life.DEAD, Life.FAILED)
            if not gone and (id, component.generation) not in self._probing:
                self._probe(id, component.generation)

    def _probe(self, place: str, generation: int) -> None:
        """Ask one process; tell the controller what came of it, or that nothing did."""
        self._probing.add((place, generation))
        answered = [False]
        number = self.controllers
        process = self._living(place, generation)
        if process is None and self.network.connected(CONTROLLER, place):
            gone = self._was_started(place, generation)
            self._probing.discard((place, generation))
            if gone:
                self.tell(lambda now_s: ComponentDied(now_s, place, generation, "process ended"))
            return

        def arrive() -> None:
            answered[0] = True
            if self.controllers == number:
                self._probing.discard((place, generation))
                said = process.describe()
                self.tell(lambda now_s: ComponentSaid(now_s, place, generation, said))

        def ask() -> None:
            process.receive(lambda: self.network.send(place, CONTROLLER, arrive))

        def give_up() -> None:
            if not answered[0] and self.controllers == number:
                self._probing.discard((place, generation))
                self.tell(lambda now_s: ProbeMissed(now_s, place, generation))

        if process is not None:
            self.network.send(CONTROLLER, place, ask)
        self.clock.after(PROBE_TIMEOUT_S, give_up)

    # -- dispatchers

    def _publish(self, action: Publish) -> None:
        number = self.controllers
        self.clock.after(
            0.001,
            lambda: (
                self.controllers == number
                and self.tell(lambda now_s: Published(now_s, action.epoch.id))
            ),
        )
        for dispatcher in self.dispatchers:
            if dispatcher.connected_to == number:
                self.network.send(
                    CONTROLLER, dispatcher.id, lambda d=dispatcher: self._follow(d, action)
                )

    def _follow(self, dispatcher: SimDispatcher, action: Publish) -> None:
        dispatcher.take(action.epoch)
        self._report(dispatcher)

    def _connect(self, dispatcher: SimDispatcher) -> None:
        if self.state is None or dispatcher.connected_to == self.controllers:
            return
        dispatcher.connected_to = self.controllers
        epoch = self.state.intent.epoch
        if epoch is not None and self.state.facts.published == epoch.id:
            self.network.send(CONTROLLER, dispatcher.id, lambda: dispatcher.take(epoch))
        self._every(REPORT_S, self.controllers, lambda: self._report(dispatcher))

    def _disconnect(self, dispatcher: SimDispatcher) -> None:
        dispatcher.connected_to = 0
        self._to_controller(dispatcher.id, lambda now_s: DispatcherGone(now_s, dispatcher.id))
        self.clock.after(1.0, lambda: self._connect(dispatcher))

    def _report(self, dispatcher: SimDispatcher) -> None:
        if dispatcher.connected_to != self.controllers:
            return
        served = {}
        epoch = dispatcher.epoch
        if epoch is not None:
            for shard in epoch.copies:
                process = dispatcher.usable(shard, self.processes)
                if process is not None and self.network.connected(dispatcher.id, shard):
                    served[shard] = Served(process.slowness)
            current = self.state.intent.epoch if self.state else None
            if current is not None and not dispatcher.stuck and epoch.id < current.id:
                published = self.state.facts.published
                if published == current.id:  # the directory sends what a follower lacks
                    self.network.send(CONTROLLER, dispatcher.id, lambda: dispatcher.take(current))
        adopted = epoch.id if epoch else None
        self._to_controller(
            dispatcher.id,
            lambda now_s: DispatcherSaid(now_s, dispatcher.id, adopted, served),
        )

    def _load(self) -> None:
        counts = np.round(self.load * 1000)
        self.tell(lambda now_s: LoadSeen(now_s, counts))

    # -- verbs

    def ask(
        self, request: str, verb: str, target: str = "", number: int = 0, dry_run: bool = False
    ) -> None:
        if self.state is not None:
            self.say(f"asked: {verb} {target} {number}{' (dry run)' if dry_run else ''}")
            self.tell(lambda now_s: VerbAsked(now_s, request, verb, target, number, dry_run))

    # -- nodes

    def cut_node(self, node: str) -> set[frozenset[str]]:
        """Pull the cable of a node: the pairs of parties that are cut off from each other by it."""
        self.say(f"{node} is cut off")
        outside = [CONTROLLER, *(dispatcher.id for dispatcher in self.dispatchers)]
        on_it = [process.place for process in self.all_processes() if process.node == node]
        pairs = {frozenset({place, party}) for place in on_it for party in outside}
        self.network.cut |= pairs
        return pairs

    # -- looking

    def all_processes(self) -> list[Process]:
        return [p for processes in self.processes.values() for p in processes if p.alive]


def _short(action: Action) -> str:
    if isinstance(action, Note):
        return f"note {action.subject}: {action.reason}"
    return f"{type(action).__name__} {action.id}: {action.reason}"


def _brief(event: Event) -> str:
    if isinstance(event, PlanMade):
        return f"PlanMade {event.request}: {event.proposal and event.proposal.reason}{event.why}"
    return str(event)
