"""The core of the control plane: what to do about an event. No clock, no I/O, no chance.

    state, actions = step(state, event, ...)

The caller journals `state.intent` if it changed, then does the actions, and gives their outcomes
back as events. Every decision follows from intent and facts alone, so an event that is lost, late
or doubled changes when something happens, not whether.
"""

from dataclasses import replace

from orchestrator.control.absorb import absorb
from orchestrator.control.actions import Action
from orchestrator.control.epochs import publish
from orchestrator.control.events import Event
from orchestrator.control.leftovers import clean_up
from orchestrator.control.load_policy import consider
from orchestrator.control.nodes import watch_nodes
from orchestrator.control.repair import repair
from orchestrator.control.rolling import roll
from orchestrator.control.settings import Settings
from orchestrator.control.sizes import scale
from orchestrator.control.state import EpochId, Facts, Intent, State
from orchestrator.control.supervision import supervise
from orchestrator.control.transactions import advance
from orchestrator.control.turn import Turn

POLICIES = (
    watch_nodes, supervise, advance, repair, advance, scale, roll, consider, clean_up, publish
)  # fmt: skip
"""In this order: what died before what moves; a repair begins in the step that saw the loss."""


def step(state: State, *events: Event) -> tuple[State, tuple[Action, ...]]:
    """The state after `events`, at least one, and what is to be done, in that order.

    Events that wait together are taken in together: decisions about thousands of components that
    describe themselves at once are then made once.
    """
    turn = Turn(state, events[-1].now_s)
    for event in events:
        absorb(turn, event)
    if turn.changed:
        for policy in POLICIES:
            policy(turn)
    return turn.state, tuple(turn.actions)


def recovered(intent: Intent, settings: Settings, now_s: float) -> State:
    """The state a new controller begins with: the journal's intent in a term of its own, no facts.

    The epoch keeps its number: it is published again under the new term.
    """
    term = intent.term + 1
    epoch = intent.epoch
    if epoch is not None:
        epoch = replace(epoch, id=EpochId(term, epoch.id.number))
    facts = Facts(started_s=now_s, phase_since_s=now_s)
    return State(settings, replace(intent, term=term, epoch=epoch), facts)
