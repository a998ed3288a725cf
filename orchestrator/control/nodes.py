"""Nodes that are lost: everything on one is silent at once, to the controller and to its clients.

One silent component may hang or be slow, and a suspect's experts stay where they are until it is
declared dead. Several that share a machine and its network seldom hang together: what was on the
node is out of reach for longer than they would, whatever became of the processes. So its experts
count as lost at once, and whoever is replaced is not waited for to confirm its end. When the node
comes back in time, everything on it is as it was and the copies made meanwhile go.

Where nothing answers on any other node it is the controller that is cut off, and no node is lost.
"""

from collections import defaultdict

from orchestrator.control.lifecycle import SERVING, Life
from orchestrator.control.state import Component
from orchestrator.control.turn import Turn

LEAST_COMPONENTS = 2
"""Of a node, before their silence says anything of the node."""

_SUBJECT = "node/"


def lost_nodes(turn: Turn) -> frozenset[str]:
    """Nodes on which nothing answers, while something does elsewhere."""
    there: dict[str, list[Component]] = defaultdict(list)
    for component in turn.facts.components.values():
        if component.said.node and component.life in (*SERVING, Life.SUSPECT):
            there[component.said.node].append(component)
    silent = {node for node, all_of_it in there.items() if all(_silent(turn, c) for c in all_of_it)}
    if there.keys() == silent:
        return frozenset()
    return frozenset(node for node in silent if len(there[node]) >= LEAST_COMPONENTS)


def tell_lost_nodes(turn: Turn) -> None:
    """Note nodes that are lost, and those that answer again or are empty by now."""
    lost = lost_nodes(turn)
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


def _silent(turn: Turn, component: Component) -> bool:
    return component.life is Life.SUSPECT and not turn.answers_clients(component)
