"""The epochs that dispatchers follow: which comes next, and telling the directory.

The number grows by one with each epoch, whatever the reason: other copies, weights, or shards and
routers that are other processes than before.
"""

from orchestrator.control.actions import Publish
from orchestrator.control.keys import Copies, all_keys, plus
from orchestrator.control.lifecycle import SERVING, Kind, Life
from orchestrator.control.state import NEVER, Epoch, EpochId
from orchestrator.control.turn import Turn

WEIGHT_SUSPECT = 0.0


def publish(turn: Turn) -> None:
    """Tell dispatchers the newest epoch, again as long as the directory does not have it; and a new
    one where only the weights changed."""
    epoch = turn.intent.epoch
    if epoch is None or turn.recovering:
        return  # dispatchers have the last view; where its shards are has yet to be learned
    if _weights_moved(turn, epoch):
        new = next_epoch(turn, epoch.copies)
        turn.change_intent(epoch=new)
        text = ", ".join(f"{id} {weight:.2f}" for id, weight in sorted(new.weights.items()))
        turn.note("weights", "weights", f"epoch {new.id} with weights: {text or 'all 1'}")
    _correct_names(turn)
    epoch = turn.intent.epoch
    assert epoch is not None
    sent_s = turn.facts.publish_sent_s if turn.facts.publish_sent == epoch.id else NEVER
    if turn.facts.published == epoch.id or turn.now_s - sent_s < turn.settings.retry_s:
        return
    transaction = turn.intent.transaction
    turn.change_facts(publish_sent=epoch.id, publish_sent_s=turn.now_s)
    turn.act(
        Publish(
            id=f"publish/{epoch.id.term}.{epoch.id.number}",
            transaction=transaction.id if transaction else 0,
            step="publish",
            reason=transaction.reason if transaction else "weights or a new controller",
            epoch=epoch,
        )
    )


def next_epoch(turn: Turn, copies: Copies) -> Epoch:
    """The epoch after the last: shards that hold all it names are listed as they are now."""
    before = turn.intent.epoch
    number = before.id.number + 1 if before else 1
    incarnations = {}
    for id, keys in copies.items():
        component = turn.facts.components.get(id)
        known = before.incarnations.get(id, 0) if before else 0
        if component is not None and keys <= component.said.holdings:
            known = component.said.incarnation
        incarnations[id] = known
    incarnations |= _routers(turn)
    return Epoch(EpochId(turn.intent.term, number), copies, incarnations, weights_of(turn, copies))


def weights_of(turn: Turn, shards: Copies) -> dict[str, float]:
    """Weight of each shard that is not 1: 0 for a suspect nobody hears from."""
    weights = {}
    for id in shards:
        component = turn.facts.components.get(id)
        if component is None:
            continue
        weight = round(component.weight, 2)
        if component.life is Life.SUSPECT and not turn.answers_clients(component):
            weight = WEIGHT_SUSPECT
        if weight < 1.0:
            weights[id] = weight
    return weights


def _weights_moved(turn: Turn, epoch: Epoch) -> bool:
    step = turn.settings.weight_step
    new = weights_of(turn, epoch.copies)
    for id in new.keys() | epoch.weights.keys():
        before, now = epoch.weights.get(id, 1.0), new.get(id, 1.0)
        if (before == WEIGHT_SUSPECT) != (now == WEIGHT_SUSPECT):
            return True
        if abs(now - before) > step * max(before, now):
            return True
    return False


def _correct_names(turn: Turn) -> None:
    """Publish what is, where a shard came back as another process or lacks copies that the epoch
    names and the plan does not: dispatchers would not connect to it, or ask in vain."""
    epoch = turn.intent.epoch
    if epoch is None or turn.recovering or turn.intent.transaction is not None:
        return
    copies = dict(epoch.copies)
    moved = False
    for id, keys in plus(epoch.copies, turn.intent.planned).items():
        component = turn.facts.components.get(id)
        if component is not None and component.life is Life.READY:
            copies[id] = keys & component.said.holdings
            known = epoch.incarnations.get(id)
            moved |= bool(copies[id]) and component.said.incarnation != known
    copies = {id: keys for id, keys in copies.items() if keys}
    routers = {id: n for id, n in epoch.incarnations.items() if id not in epoch.copies}
    moved |= routers != _routers(turn)
    if (copies == epoch.copies and not moved) or turn.intent.keys - all_keys(copies):
        return
    new = next_epoch(turn, copies)
    turn.change_intent(epoch=new)
    turn.note("epoch", "names", f"epoch {new.id}: shards or routers are others than it named")


def _routers(turn: Turn) -> dict[str, int]:
    """Incarnations of the routers: of those that serve now, or else of those that did last."""
    named = turn.intent.epoch.incarnations if turn.intent.epoch else {}
    routers = {}
    for id, place in turn.intent.places.items():
        component = turn.facts.components.get(id)
        if place.kind is Kind.ROUTER:
            serves = component is not None and component.life in SERVING
            known = component.said.incarnation if component and serves else named.get(id, 0)
            if known:
                routers[id] = known
    return routers
