"""Nodes that are lost: everything on one is silent at once, to the controller and to its clients.

One silent component may hang or be slow, and a suspect's experts stay where they are until it is
declared dead. Several that share a machine and its network seldom hang together: what was on the
node is out of reach for longer than they would, whatever became of the processes. So fewer probes
have to be missed, its experts count as lost at once, and whoever is replaced is not waited for to
confirm its end. When the node comes back in time, everything on it is as it was and the copies made
meanwhile go.

Somebody has to be a witness that the network is there: a component on a third node that answered
the last probe. Of two nodes, what runs beside the controller is one. Without a witness it may be
the controller that is cut off. Then no node is lost, and no suspect is declared dead until somebody
answers; after `cut_off_limit_s` each is judged by itself, as Ray has told by then which nodes it
lost.
"""

from collections import defaultdict

from orchestrator.control.lifecycle import SERVING, Life
from orchestrator.control.state import Component
from orchestrator.control.turn import Turn

LEAST_COMPONENTS = 2
"""Of a node, before their silence says anything of the node."""

_SUBJECT = "node/"
_CUT_OFF = "nodes"


def watch_nodes(turn: Turn) -> None:
    """Note in the facts which nodes are lost and whether the controller is cut off."""
    there: dict[str, list[Component]] = defaultdict(list)
    for component in turn.facts.components.values():
        if component.said.node and component.life in (*SERVING, Life.SUSPECT):
            there[component.said.node].append(component)
    own = turn.settings.controller_node
    others = there.keys() - {own}
    silent = {node for node in others if all(_silent(turn, one) for one in there[node])}
    witnessed = _witnessed(there, own)
    # Those who were out of reach together come back one after the other.
    settled = turn.now_s - turn.facts.cut_off_until_s > turn.settings.node_unheard_s
    many = {node for node in silent if len(there[node]) >= LEAST_COMPONENTS}
    turn.change_facts(lost_nodes=frozenset(many if witnessed and settled else ()))
    alone = silent == others and sum(len(there[node]) for node in others) >= LEAST_COMPONENTS
    _wait_for_others(turn, cut_off=alone and not witnessed)
    _tell_lost(turn)


def _silent(turn: Turn, component: Component) -> bool:
    settings = turn.settings
    unheard_s = turn.now_s - component.answered_s
    return component.misses >= settings.misses_of_lost_node and unheard_s > settings.node_unheard_s


def _witnessed(there: dict[str, list[Component]], own: str) -> bool:
    """Whether what is silent on one node can be told from a controller that is cut off."""
    answering = {node for node, on_it in there.items() if any(one.misses == 0 for one in on_it)}
    of_two = own in answering and len(there) == 2
    return bool(answering - {own}) or of_two


def _wait_for_others(turn: Turn, *, cut_off: bool) -> None:
    facts = turn.facts
    if not cut_off:
        turn.change_facts(cut_off_since_s=None)
        turn.solved(_CUT_OFF)
        return
    since_s = turn.now_s if facts.cut_off_since_s is None else facts.cut_off_since_s
    limit_s = turn.settings.cut_off_limit_s
    waits = turn.now_s - since_s < limit_s
    until_s = turn.now_s if waits else facts.cut_off_until_s
    turn.change_facts(cut_off_since_s=since_s, cut_off_until_s=until_s)
    then = f"nothing is replaced for {limit_s:g} s" if waits else "each is judged by itself now"
    turn.problem(
        _CUT_OFF,
        f"nothing on any other node answers; the controller may be the one that is cut off: {then}",
    )


def _tell_lost(turn: Turn) -> None:
    """Note nodes that are lost, and those that answer again or are empty by now."""
    lost = turn.facts.lost_nodes
    for subject in list(turn.facts.problems):
        if subject.startswith(_SUBJECT) and subject.removeprefix(_SUBJECT) not in lost:
            turn.solved(subject)
    for node in sorted(lost):
        on_it = sorted(id for id, c in turn.facts.components.items() if c.said.node == node)
        turn.problem(
            _SUBJECT + node,
            f"node {node} is lost: {', '.join(on_it)} are silent at once, to their clients too. "
            "Experts that are only there are loaded elsewhere now; the components are replaced "
            f"if they stay silent for {turn.settings.suspect_limit_s:g} s",
        )
