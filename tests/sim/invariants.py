"""What has to be true after every event of a simulation; each breach names itself."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.control.actions import (
    Action,
    Cancel,
    Note,
    Prepare,
    Publish,
    Retire,
    StopComponent,
)
from orchestrator.control.events import Event, Tick
from orchestrator.control.keys import NO_KEYS, Keys
from orchestrator.control.lifecycle import LIVES, PHASES, SERVING, Life, Phase
from orchestrator.control.repair import lost_keys
from orchestrator.control.state import Epoch, EpochId, State
from orchestrator.control.turn import Turn

if TYPE_CHECKING:
    from tests.sim.mesh import SimMesh
    from tests.sim.process import Process


class Breach(AssertionError):
    """An invariant does not hold; the message starts with its name."""


class Invariants:
    """Looks at every step of the core and at every change of a process."""

    def __init__(self, mesh: "SimMesh") -> None:
        self._mesh = mesh
        self._epochs: dict[EpochId, Epoch] = {}
        self._highest: EpochId | None = None
        self._actions: dict[str, Action] = {}
        self._noted: set[str] = set()
        self.checked = 0
        self._ticked_s = 0.0

    def after_step(
        self, before: State, events: Sequence[Event], state: State, actions: Sequence[Action]
    ) -> None:
        self.checked += 1
        self._lives(before, state)
        self._one_transaction(before, state, actions)
        self._reasons(actions)
        self._same_actions(actions)
        self._epochs_grow(actions)
        self._last_copy_stays(state, actions)
        self._no_hasty_decision(before, state, actions)
        if any(isinstance(event, Tick) for event in events):
            self._ticked_s = events[-1].now_s
        self._every_key(state, self._ticked_s)
        self._epoch_is_whole(before, state)

    # -- 1: every key has a ready copy, or its repair is under way and visible

    def _every_key(self, state: State, now_s: float) -> None:
        # As of the last tick: that time passed since is what the next one is for.
        turn = Turn(state, now_s)
        if state.intent.epoch is None or turn.recovering:
            return
        lost = lost_keys(turn)
        transaction = state.intent.transaction
        adding = transaction.current.add.values() if transaction else ()
        if lost - NO_KEYS.union(*adding) and "experts" not in state.facts.problems:
            raise Breach(f"every key: {len(lost)} keys are lost and nothing says so")

    # -- 2: memory

    def after_change(self, process: "Process") -> None:
        held = process.holdings | process.loading
        if len(held) > process.capacity:
            raise Breach(
                f"memory: {process.place} holds and loads {len(held)} keys of {process.capacity}"
            )

    # -- 3: epochs only grow

    def _epochs_grow(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Publish):
                epoch = action.epoch
                known = self._epochs.setdefault(epoch.id, epoch)
                if known != epoch:
                    raise Breach(f"epochs: {epoch.id} was published with another content")
                if self._highest is not None and epoch.id < self._highest:
                    raise Breach(f"epochs: {epoch.id} was published after {self._highest}")
                self._highest = epoch.id

    def _epoch_is_whole(self, before: State, state: State) -> None:
        epoch = state.intent.epoch
        if epoch is None or epoch is before.intent.epoch:
            return
        missing = state.intent.keys - NO_KEYS.union(*epoch.copies.values())
        if missing:
            raise Breach(f"epochs: {epoch.id} names no shard for {len(missing)} keys")
        for id, keys in epoch.copies.items():
            component = state.facts.components.get(id)
            if component is not None and component.said.incarnation == epoch.incarnations[id]:
                absent = keys - component.said.holdings
                if component.life is Life.READY and absent:
                    raise Breach(f"epochs: {epoch.id} names {len(absent)} keys {id} lacks")

    # -- 4: one transaction at a time, phase by phase

    def _one_transaction(self, before: State, state: State, actions: Sequence[Action]) -> None:
        old, new = before.intent.transaction, state.intent.transaction
        if new is not None and old is not None and new.id < old.id:
            raise Breach(f"one transaction: {new.id} after {old.id}")
        phases = [Phase(a.step) for a in actions if isinstance(a, Note) and a.step in PHASES]
        at = old.phase if old else None
        for phase in phases:
            if at is None or not PHASES[at]:
                if phase is not Phase.PLANNED:
                    raise Breach(f"one transaction: {phase} without a transaction")
            elif phase not in PHASES[at]:
                raise Breach(f"one transaction: {at} -> {phase}")
            at = phase
        for action in actions:
            if isinstance(action, Prepare) and not action.transaction:
                raise Breach(f"one transaction: {action.id} is part of none")

    # -- 5: every action has a reason; deaths are told

    def _reasons(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if not action.reason.strip():
                raise Breach(f"reasons: {action.id} has none")

    # -- 6: repeating an action changes nothing

    def _same_actions(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Prepare | Retire | Cancel | Publish | StopComponent):
                known = self._actions.setdefault(action.id, action)
                if _content(known) != _content(action):
                    raise Breach(f"same action: {action.id} was sent with another content")

    def obeyed_twice(self, process: "Process", command: Prepare | Retire | Cancel) -> None:
        said = process.describe()
        process.obey(command)
        if process.describe() != said:
            raise Breach(f"same action: {command.id} did something when it was repeated")

    # -- 7: no decision from one missed probe, and only allowed transitions

    def _lives(self, before: State, state: State) -> None:
        for id, component in state.facts.components.items():
            old = before.facts.components.get(id)
            if old is None or old is component or old.life is component.life:
                continue
            if old.generation == component.generation and not _reachable(old.life, component.life):
                raise Breach(f"lifecycle: {id} {old.life} -> {component.life}")

    def _no_hasty_decision(self, before: State, state: State, actions: Sequence[Action]) -> None:
        for id, component in state.facts.components.items():
            old = before.facts.components.get(id)
            suspected = component.life is Life.SUSPECT and component.misses < 2
            if old is not None and old.life in SERVING and suspected:
                raise Breach(f"hasty: {id} is suspected after {component.misses} missed probe")
        for action in actions:
            if isinstance(action, StopComponent) and action.kill:
                self._may_be_killed(before, state, action)

    def _may_be_killed(self, before: State, state: State, action: StopComponent) -> None:
        component = state.facts.components.get(action.component)
        if component is None or component.generation != action.generation:
            return  # left over from before its place was filled again
        if component.life is Life.READY and component.ending_s is None:
            raise Breach(f"hasty: {action.component} is killed while it answers")

    # -- a copy is only dropped where another is known to serve

    def _last_copy_stays(self, state: State, actions: Sequence[Action]) -> None:
        retired = [action for action in actions if isinstance(action, Retire)]
        if not retired or state.intent.epoch is None:
            return
        turn = Turn(state, 0.0)
        leaving: dict[str, Keys] = {}
        for action in retired:
            leaving[action.shard] = leaving.get(action.shard, NO_KEYS) | action.keys
        for shard, keys in leaving.items():
            others = [
                turn.holdings(id) - leaving.get(id, NO_KEYS)
                for id, component in turn.shards().items()
                if id != shard and component.life not in (Life.DEAD, Life.FAILED)
            ]
            last = keys & state.facts.components[shard].said.holdings & state.intent.keys
            last -= NO_KEYS.union(*others)
            if last:
                raise Breach(f"last copy: {shard} is to retire the last copy of {sorted(last)[:3]}")


def _content(action: Action) -> tuple:
    if isinstance(action, Publish):
        return (action.id, action.epoch)
    if isinstance(action, Prepare | Retire):
        return (action.id, action.order, action.keys, action.generation)
    return (action.id,)


def _reachable(before: Life, after: Life) -> bool:
    """In one step a component may pass through several lives."""
    seen, edge = {before}, {before}
    while edge:
        edge = {to for life in edge for to in LIVES[life]} - seen
        seen |= edge
    return after in seen
