"""Runs the core: takes events in, journals, acts, and gives the outcomes back as events.

Thin on purpose: every decision is in `step`. A step is journaled before anything of it is done; one
that cannot be journaled is not done at all, and who asked for it is told. Each action runs as a
task of its own; an action with the id of one that still runs is that one.

Deciding and planning run in threads: a step over hundreds of shards with tens of thousands of
copies takes up to half a second, in which the loop still answers questions from the last state.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

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
from orchestrator.control.clients import Command, Components, Followers, Gone
from orchestrator.control.events import (
    ComponentDied,
    ComponentSaid,
    DispatcherGone,
    DispatcherSaid,
    Event,
    PlanMade,
    ProbeMissed,
    Published,
    ShardWrong,
    Tick,
    VerbAsked,
)
from orchestrator.control.journal import Journal, JournalError
from orchestrator.control.lifecycle import Life
from orchestrator.control.plan_request import PlanRequest, Proposal
from orchestrator.control.planning import NoPlan, make_plan
from orchestrator.control.state import EpochId, Intent, State
from orchestrator.control.step import step

log = logging.getLogger(__name__)

TICK_S = 0.5
FOLLOW_S = 0.05
"""Pause between two looks at what dispatchers follow; looking is cheap and commits wait for it."""

MakeEvent = Callable[[float], Event]
"""An event without its time, which it gets when it is taken in."""


class Runner:
    """One controller's loop."""

    def __init__(
        self,
        state: State,
        journal: Journal,
        components: Components,
        followers: Followers,
        *,
        probe_interval_s: float,
        plan: Callable[[PlanRequest], Proposal] = make_plan,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = state
        self.problem = ""
        """Why no change can be made now: the journal does not take it; empty if it does."""
        self._journal = journal
        self._components = components
        self._followers = followers
        self._probe_interval_s = probe_interval_s
        self._plan = plan
        self._clock = clock
        self._inbox: asyncio.Queue[MakeEvent] = asyncio.Queue()
        self._doing: dict[str, asyncio.Task[None]] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._answers: dict[str, asyncio.Future[tuple[bool, str]]] = {}
        self._requests = 0

    # -- life

    async def start(self) -> None:
        """Write the state it begins with, which announces its term; then run in the background.

        Raises:
            JournalError: the term cannot be written.
        """
        await asyncio.to_thread(self._journal.write, self.state.intent, (), time.time())
        loops = (self._take_in(), self._tick(), self._probe_all(), self._follow())
        self._loops = [asyncio.create_task(loop) for loop in loops]

    async def stop(self) -> None:
        """End without ending any component. Idempotent."""
        await self.halt()
        self._journal.close()

    async def close(self, reason: str) -> None:
        """End, and have the journal say that the mesh is over: who reads it next starts anew.

        Raises:
            JournalError: that cannot be written.
        """
        await self.halt()
        over = Intent(term=self.state.intent.term, transactions=self.state.intent.transactions)
        note = Note(
            id="stop", step="stop", subject="mesh", reason=reason, transaction=0, figures={}
        )
        try:
            await asyncio.to_thread(self._journal.write, over, [note], time.time())
        finally:
            self._journal.close()

    async def halt(self) -> None:
        """Decide and act no more. Idempotent."""
        tasks = [*self._loops, *self._doing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loops = []

    def history(self, after: int = 0, limit: int = 100) -> list[dict[str, object]]:
        """See `Journal.history`."""
        return self._journal.history(after, limit)

    async def ask(
        self, verb: str, target: str = "", number: int = 0, *, dry_run: bool = False
    ) -> tuple[bool, str]:
        """Do what a person asks for; (whether it is done, what is to be said about it)."""
        self._requests += 1
        request = f"{self.state.intent.term}.{self._requests}"
        answer = asyncio.get_running_loop().create_future()
        self._answers[request] = answer
        self.tell(lambda now_s: VerbAsked(now_s, request, verb, target, number, dry_run))
        return await answer

    def tell(self, event: MakeEvent) -> None:
        """Give the core an event; may be called from the loop's thread only."""
        self._inbox.put_nowait(event)

    # -- event, journal, act

    async def _take_in(self) -> None:
        while True:
            waiting = [await self._inbox.get()]
            while not self._inbox.empty():
                waiting.append(self._inbox.get_nowait())
            now_s = self._clock()
            events = [event(now_s) for event in waiting]
            try:
                await self._step(events)
            except Exception:  # a fault in a decision must not end the control of the mesh
                log.exception("a step failed; its events are dropped")
                self._refuse(events, "a fault in the control plane, see the controller's log")

    async def _step(self, events: Sequence[Event]) -> None:
        state, actions = await asyncio.to_thread(step, self.state, *events)
        notes = [action for action in actions if isinstance(action, Note)]
        if state.intent is not self.state.intent or notes:
            try:
                await asyncio.to_thread(self._journal.write, state.intent, notes, time.time())
            except JournalError as error:
                if self.problem != str(error):
                    log.error("no change can be made: %s", error)
                self.problem = str(error)
                self._refuse(events, self.problem)
                return
            self.problem = ""
        self.state = state
        for action in actions:
            self._act(action)

    def _refuse(self, events: Sequence[Event], why: str) -> None:
        for event in events:
            if isinstance(event, VerbAsked):
                self._answer(event.request, done=False, text=why)

    def _answer(self, request: str, *, done: bool, text: str) -> None:
        waiting = self._answers.pop(request, None)
        if waiting is not None and not waiting.done():
            waiting.set_result((done, text))

    def _act(self, action: Action) -> None:
        match action:
            case Note():
                log.info("%s: %s", action.subject, action.reason, extra=_about(action))
            case Answer():
                self._answer(action.request, done=action.done, text=action.reason)
            case Evict():
                self._followers.evict(action.dispatcher)
                self.tell(lambda now_s: DispatcherGone(now_s, action.dispatcher))
            case StartComponent():
                self._do(action.id, lambda: self._start(action))
            case StopComponent():
                self._do(action.id, lambda: self._stop_component(action))
            case ProbeNow():
                self._do(action.id, lambda: self._probe(action.component, action.generation))
            case Prepare() | Retire() | Cancel():
                self._do(action.id, lambda: self._command(action))
            case Publish():
                self._do(action.id, partial(self._publish, action.epoch.id, self.state))
            case MakePlan():
                self._do(action.id, lambda: self._make_plan(action))

    def _do(self, id: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if id in self._doing:
            return
        task = asyncio.create_task(self._safely(id, work))
        self._doing[id] = task
        task.add_done_callback(lambda _: self._doing.pop(id, None))

    @staticmethod
    async def _safely(id: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception:  # the core asks again for what shows no effect
            log.exception("action %s failed", id)

    # -- actions

    async def _start(self, action: StartComponent) -> None:
        id, generation = action.component, action.generation
        try:
            await self._components.start(action)
        except Gone as error:
            why = str(error)
            self.tell(lambda now_s: ComponentDied(now_s, id, generation, why))
        else:
            await self._probe(id, generation)

    async def _stop_component(self, action: StopComponent) -> None:
        id, generation = action.component, action.generation
        client = self._components.find(id, generation)
        why = "there is no such process"
        if client is not None:
            try:
                why = await client.end(kill=action.kill)
            except TimeoutError:
                return  # asked again until it is confirmed
        self.tell(lambda now_s: ComponentDied(now_s, id, generation, why))

    async def _command(self, command: Command) -> None:
        id, generation = command.shard, command.generation
        client = self._components.find(id, generation)
        if client is None:
            return
        try:
            said = await client.obey(command)  # type: ignore[attr-defined]
        except Gone as error:
            why = str(error)
            self.tell(lambda now_s: ComponentDied(now_s, id, generation, why))
        else:
            self.tell(lambda now_s: ComponentSaid(now_s, id, generation, said))

    async def _publish(self, epoch: EpochId, state: State) -> None:
        await self._followers.publish(state)
        self.tell(lambda now_s: Published(now_s, epoch))

    async def _make_plan(self, action: MakePlan) -> None:
        proposal, why = None, ""
        try:
            proposal = await asyncio.to_thread(self._plan, action.plan)
        except NoPlan as error:
            why = str(error)
        self.tell(lambda now_s: PlanMade(now_s, action.request, proposal, why))

    async def _probe(self, id: str, generation: int) -> None:
        client = self._components.find(id, generation)
        if client is None:
            return
        try:
            said = await client.describe()
        except TimeoutError:
            self.tell(lambda now_s: ProbeMissed(now_s, id, generation))
        except Gone as error:
            why = str(error)
            self.tell(lambda now_s: ComponentDied(now_s, id, generation, why))
        else:
            self.tell(lambda now_s: ComponentSaid(now_s, id, generation, said))

    # -- loops

    async def _tick(self) -> None:
        while True:
            self.tell(Tick)
            await asyncio.sleep(TICK_S)

    async def _probe_all(self) -> None:
        """Ask every process that serves; one that starts is asked when its start has ended."""
        while True:
            for id, component in self.state.facts.components.items():
                if component.life in (Life.READY, Life.SUSPECT, Life.DRAINING):
                    generation = component.generation
                    self._do(f"probe/{id}/{generation}", partial(self._probe, id, generation))
            await asyncio.sleep(self._probe_interval_s)

    async def _follow(self) -> None:
        """Tell what dispatchers follow, when it changed, and what they report of shards."""
        known: dict[str, EpochId | None] = {}
        while True:
            now = dict(self._followers.adopted())
            for id, adopted in now.items():
                if id not in known or known[id] != adopted:
                    self.tell(lambda now_s, i=id, a=adopted: DispatcherSaid(now_s, i, a))  # type: ignore[misc]
            for id, served in self._followers.served().items():
                adopted = now.get(id)
                self.tell(lambda now_s, i=id, a=adopted, s=served: DispatcherSaid(now_s, i, a, s))  # type: ignore[misc]
            for id, shards in self._followers.wrong().items():
                for shard, of in shards.items():
                    self.tell(lambda now_s, i=id, s=shard, o=of: ShardWrong(now_s, s, o, i))  # type: ignore[misc]
            for id in known.keys() - now.keys():
                self.tell(lambda now_s, i=id: DispatcherGone(now_s, i))  # type: ignore[misc]
            known = now
            await asyncio.sleep(FOLLOW_S)


def _about(note: Note) -> dict[str, object]:
    """Fields of a log line in JSON."""
    about: dict[str, object] = {"subject": note.subject, "step": note.step}
    return {**about, "transaction": note.transaction} if note.transaction else about
