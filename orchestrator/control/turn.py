"""One call of `step` while it runs: the state so far and the actions decided.

Policies are functions of a `Turn`. It lives for one step only; the states before and after are
immutable values.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.control.actions import Action, Note
from orchestrator.control.keys import NO_KEYS, Copies, Keys
from orchestrator.control.lifecycle import SERVING, Kind, Life, Wanted, check_life
from orchestrator.control.settings import Settings
from orchestrator.control.state import (
    UNKNOWN,
    Component,
    Facts,
    Intent,
    Order,
    State,
)


class Turn:
    """now_s: time of the event. changed: something decisions depend on is not as it was."""

    def __init__(self, state: State, now_s: float) -> None:
        self.settings: Settings = state.settings
        self.intent: Intent = state.intent
        self.facts: Facts = state.facts
        self.now_s = now_s
        self.actions: list[Action] = []
        self.changed = False
        self._own_components: dict[str, Component] | None = None

    @property
    def state(self) -> State:
        return State(self.settings, self.intent, self.facts)

    # -- changes

    def change_intent(self, **changes: Any) -> None:
        self.intent = replace(self.intent, **changes)

    def change_facts(self, **changes: Any) -> None:
        self.facts = replace(self.facts, **changes)

    def change_place(self, id: str, **changes: Any) -> None:
        place = replace(self.intent.places[id], **changes)
        self.change_intent(places={**self.intent.places, id: place})

    def set_component(self, id: str, component: Component) -> None:
        if self._own_components is None:  # copied once a step, however many change
            self._own_components = dict(self.facts.components)
            self.change_facts(components=self._own_components)
        self._own_components[id] = component

    def change_component(self, id: str, **changes: Any) -> None:
        self.set_component(id, replace(self.facts.components[id], **changes))

    def forget(self, id: str) -> None:
        """Take a place and its component out."""
        self.change_intent(
            places={other: place for other, place in self.intent.places.items() if other != id}
        )
        self.set_component(id, self.facts.components[id])
        assert self._own_components is not None
        del self._own_components[id]
        self.changed = True

    def move(self, id: str, life: Life, why: str) -> None:
        """Change a component's life, which its lifecycle must allow."""
        component = self.facts.components[id]
        check_life(id, component.life, life)
        self.change_component(id, life=life, since_s=self.now_s, why=why)
        self.changed = True

    # -- decisions

    def act(self, action: Action) -> None:
        self.actions.append(action)

    def note(
        self,
        subject: str,
        step: str,
        text: str,
        transaction: int = 0,
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Add a line to the mesh's history."""
        number = len(self.actions)
        self.act(
            Note(
                id=f"note/{subject}/{step}/{self.now_s:.6f}/{number}",
                transaction=transaction,
                step=step,
                reason=text,
                subject=subject,
                figures=figures or {},
            )
        )

    def problem(self, subject: str, text: str) -> None:
        """Keep a standing problem visible; noted once for as long as the text stays."""
        if self.facts.problems.get(subject) != text:
            self.change_facts(problems={**self.facts.problems, subject: text})
            self.note(subject, "problem", text)

    def solved(self, subject: str) -> None:
        if subject in self.facts.problems:
            left = {other: text for other, text in self.facts.problems.items() if other != subject}
            self.change_facts(problems=left)

    def next_order(self) -> Order:
        self.change_intent(orders=self.intent.orders + 1)
        return Order(self.intent.term, self.intent.orders)

    # -- questions

    @property
    def recovering(self) -> bool:
        """Components had no time yet to describe themselves to this controller."""
        if self.now_s >= self.facts.started_s + self.settings.recovery_s:
            return False
        components = self.facts.components
        if not components and self.intent.places:
            return True
        return any(c.adopting and c.life is Life.STARTING for c in components.values())

    def restarts(self, id: str) -> bool:
        """Whether the end of this place's process is part of a restart that was asked for."""
        rolling = self.intent.rolling
        return self.intent.places[id].wanted is Wanted.RESTART or (
            rolling is not None and rolling.current == id
        )

    def shards(self) -> dict[str, Component]:
        """Components of the shards, by id."""
        places = self.intent.places
        return {
            id: component
            for id, component in self.facts.components.items()
            if id in places and places[id].kind is Kind.SHARD
        }

    def serves(self, component: Component) -> bool:
        """Whether what the component holds can be counted on: it answers, or its clients say so."""
        if component.life in SERVING:
            return True
        return component.life in (Life.SUSPECT, Life.STARTING) and self.answers_clients(component)

    def holdings_or_none(self, id: str) -> Keys:
        """What a shard said it holds; nothing if there is no such shard any more."""
        component = self.facts.components.get(id)
        return component.said.holdings if component else NO_KEYS

    def answers_clients(self, component: Component) -> bool:
        fresh = self.now_s - component.answered_s <= self.settings.client_fresh_s
        return fresh and not self.is_lost(component)

    def is_lost(self, component: Component) -> bool:
        """Whether everything on the component's node is silent, see `nodes`."""
        silent = component.misses >= self.settings.misses_of_lost_node
        return silent and component.said.node in self.facts.lost_nodes

    def serving_copies(self) -> dict[str, Keys]:
        """What shards that can be counted on hold."""
        held = {id: self.holdings(id) for id, c in self.shards().items() if self.serves(c)}
        return {id: keys for id, keys in held.items() if keys}

    def named_and_held(self) -> dict[str, Keys]:
        """Copies that dispatchers know of and shards have."""
        named = self.epoch_copies()
        return {id: keys & named.get(id, NO_KEYS) for id, keys in self.serving_copies().items()}

    def holdings(self, id: str) -> Keys:
        """What a shard said it holds; before it spoke to this controller, what its clients use."""
        component = self.facts.components.get(id)
        said = component.said if component else UNKNOWN
        return said.holdings if said.incarnation else self.epoch_copies().get(id, NO_KEYS)

    def epoch_copies(self) -> Copies:
        return self.intent.epoch.copies if self.intent.epoch else {}

    def takes_copies(self, id: str) -> bool:
        """Whether a shard may be given further copies."""
        place = self.intent.places[id]
        component = self.facts.components[id]
        stays = place.wanted is Wanted.RUN and component.ending_s is None
        return component.life is Life.READY and stays and not self.cordoned(id)

    def cordoned(self, id: str) -> bool:
        """Whether a place, or the node its process is on, gets no new copies."""
        component = self.facts.components.get(id)
        node = component.said.node if component else ""
        return self.intent.places[id].cordoned or node in self.intent.cordoned_nodes


def settled(component: Component) -> bool:
    """No command is on its way to the shard or under way in it."""
    command = component.command
    return command is None or (component.said.order >= command.order and not component.said.loading)


def may_hold(component: Component) -> Keys:
    """What takes memory on the shard, in the worst case."""
    said, command = component.said, component.command
    sent = NO_KEYS
    if command is not None and command.step == "prepare" and said.order < command.order:
        sent = command.keys
    return said.holdings | said.loading | sent


def room_bytes(component: Component) -> int:
    """Bytes that can be given away for certain."""
    return component.said.capacity_bytes - component.said.bytes_of(may_hold(component))
