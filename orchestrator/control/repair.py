"""Puts back what a failure took: which keys are lost, who loads them, and the way back to the plan.

A key whose copies are all gone is loaded by the shard with most room: a warm spare where there is
one. Where none has room, copies that others stand in for make way. When the lost shard is replaced,
its successor loads what the plan names for it and the copies made on demand go.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.control.batching import NoWay, batches, predict_s
from orchestrator.control.keys import (
    NO_KEYS,
    Copies,
    Keys,
    PlacedKey,
    all_keys,
    copies_per_key,
    minus,
    name_some,
    number_of,
    plus,
)
from orchestrator.control.lifecycle import Life, TransactionKind
from orchestrator.control.plan_request import ShardRoom
from orchestrator.control.state import Batch, Component
from orchestrator.control.transactions import begin, preempt
from orchestrator.control.turn import Turn, may_hold, room_bytes


@dataclass(frozen=True, slots=True)
class Rescue:
    """Copies to load for lost keys, what makes way first, and the keys nobody has room for."""

    add: dict[str, Keys]
    first: dict[str, Keys]
    left: Keys


def repair(turn: Turn) -> None:
    """Begin the transaction that the facts ask for, if any."""
    if turn.intent.epoch is None or turn.recovering:
        return
    lost = lost_keys(turn)
    if not lost:
        turn.solved("experts")
    running = turn.intent.transaction
    coming = all_keys(running.current.add) if running and not running.why_back else NO_KEYS
    if lost - coming:
        _rescue(turn, lost)
    if turn.intent.transaction is None and turn.now_s >= turn.facts.not_before_s:
        _restore(turn)


def lost_keys(turn: Turn) -> Keys:
    """Keys that no shard that can be counted on holds and is named for by the epoch."""
    # A suspect may only be slow to answer: its keys count as lost when it is declared dead, or with
    # everything else on its node.
    named = turn.epoch_copies()

    def may_answer(component: Component) -> bool:
        suspect = component.life is Life.SUSPECT and not component.ending_s
        return suspect and not turn.is_lost(component)

    held = [
        turn.holdings(id) & named.get(id, NO_KEYS)
        for id, component in turn.shards().items()
        if turn.serves(component) or may_answer(component)
    ]
    return turn.intent.keys - NO_KEYS.union(*held)


def plan_rescue(lost: Keys, held: Copies, takers: Mapping[str, Component]) -> Rescue:
    """Who loads which lost key. held: copies that can be counted on; takers: shards that may."""
    left_bytes = {id: room_bytes(component) for id, component in takers.items()}
    counts = copies_per_key(held)
    add: dict[str, set[PlacedKey]] = {}
    first: dict[str, set[PlacedKey]] = {}
    unplaced = set()
    for key in sorted(lost):
        there = [id for id in takers if key in takers[id].said.holdings]
        if there:  # left by a transaction that was rolled back: it only has to be named
            add.setdefault(there[0], set()).add(key)
            continue
        choices = [id for id in takers if key.kind in takers[id].said.key_bytes]
        choices.sort(key=lambda id: (takers[id].load_failures, -left_bytes[id], id))
        for id in choices:
            need = takers[id].said.key_bytes[key.kind]
            if left_bytes[id] < need:
                left_bytes[id] += _make_way(id, need - left_bytes[id], takers, held, counts, first)
            if left_bytes[id] >= need:
                left_bytes[id] -= need
                add.setdefault(id, set()).add(key)
                break
        else:
            unplaced.add(key)
    return Rescue(_frozen(add), _frozen(first), frozenset(unplaced))


def _make_way(
    id: str,
    need: int,
    takers: Mapping[str, Component],
    held: Copies,
    counts: Counter[PlacedKey],
    first: dict[str, set[PlacedKey]],
) -> int:
    """Give up copies with most replicas elsewhere until `need` bytes are free; all or none."""
    sizes = takers[id].said.key_bytes
    leaving = first.get(id, set())
    spare = [key for key in held.get(id, NO_KEYS) if counts[key] > 1 and key not in leaving]
    freed, chosen = 0, []
    for key in sorted(spare, key=lambda key: (-counts[key], key)):
        if freed >= need:
            break
        freed += sizes[key.kind]
        chosen.append(key)
    if freed < need:
        return 0
    for key in chosen:
        counts[key] -= 1
        first.setdefault(id, set()).add(key)
    return freed


def _frozen(copies: Mapping[str, set[PlacedKey]]) -> dict[str, Keys]:
    return {id: frozenset(keys) for id, keys in copies.items() if keys}


def _rescue(turn: Turn, lost: Keys) -> None:
    takers = {id: shard for id, shard in turn.shards().items() if turn.takes_copies(id)}
    rescue = plan_rescue(lost, turn.named_and_held(), takers)
    gone = sorted(
        id for id, c in turn.shards().items() if not turn.serves(c) and id in turn.epoch_copies()
    )
    what = f"{len(lost)} keys have no copy left ({name_some(lost)}; lost with {', '.join(gone)})"
    then = f"{number_of(rescue.add)} are loaded by {', '.join(sorted(rescue.add))}"
    if rescue.left:
        then = (
            f"{len(rescue.left)} fit on no shard that is left and wait for a replacement, a warm "
            "spare or more memory"
        )
    turn.problem("experts", f"{what}: {then}")
    if not rescue.add:
        return
    if turn.intent.transaction is not None:
        preempt(turn, f"{what}: their repair goes first")
        return
    if turn.now_s < turn.facts.not_before_s:
        return
    rooms = rooms_of(turn)
    steps = [Batch({}, rescue.first, 0.0)] if rescue.first else []
    steps.append(
        Batch(rescue.add, {}, predict_s(rescue.add, rooms, turn.settings.load_bytes_per_s))
    )
    begin(
        turn,
        TransactionKind.REPAIR,
        tuple(steps),
        turn.intent.planned,
        f"{what}; {', '.join(sorted(rescue.add))} load them now; with another copy left nothing "
        "would be loaded before the replacement is ready",
    )


def _restore(turn: Turn) -> None:
    """Back to the plan: replaced shards load what it names, copies made on demand go."""
    planned = {
        id: keys
        for id, keys in turn.intent.planned.items()
        if id in turn.facts.components and turn.takes_copies(id)
    }
    named = turn.epoch_copies()
    held = {id: c.said.holdings for id, c in turn.shards().items() if turn.takes_copies(id)}
    missing = minus(planned, held)
    # What the plan does not name may go when all that it does name is there.
    whole = all(
        turn.intent.planned[id] <= held.get(id, NO_KEYS) | missing.get(id, NO_KEYS)
        for id in turn.intent.planned
    )
    extra = minus({id: named.get(id, NO_KEYS) for id in held}, turn.intent.planned)
    if not missing and not (whole and extra):
        return
    target = planned if whole else plus(planned, held)
    try:
        way = batches(held, target, rooms_of(turn), turn.settings.load_bytes_per_s)
    except NoWay as error:
        turn.problem("restore", f"the placement cannot be restored: {error}")
        return
    turn.solved("restore")
    if not way:
        return
    who = ", ".join(sorted(missing)) or "copies made on demand"
    begin(
        turn,
        TransactionKind.RESTORE,
        way,
        turn.intent.planned,
        f"back to the planned placement: {number_of(missing)} copies missing on {who}, "
        f"{number_of(extra)} no longer needed; without either nothing would be done",
    )


def rooms_of(turn: Turn) -> dict[str, ShardRoom]:
    """What shards that take copies have; what may still be loading there takes room too."""
    rooms = {}
    for id, component in turn.shards().items():
        if turn.takes_copies(id):
            said = component.said
            hidden = said.bytes_of(may_hold(component) - said.holdings)
            rooms[id] = ShardRoom(said.capacity_bytes - hidden, said.key_bytes, said.rate)
    return rooms
