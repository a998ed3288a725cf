"""Failure domains: which shards may fail together, and whether the plan still keeps copies apart.

A plan is made for the domains that shards have then. A shard that is replaced may come back on
another node, and so in another domain, with the copies that the plan named for its place.
"""

from collections import Counter
from collections.abc import Iterable

from orchestrator.control.keys import NO_KEYS, Copies, Keys
from orchestrator.control.turn import Turn


def domain_of(turn: Turn, id: str) -> str:
    """The pool's, else the node; where no pool names one, every shard is on its own."""
    named = turn.settings.domains
    if not named:
        return id
    return named.get(turn.intent.places[id].pool) or turn.facts.components[id].said.node


def domains_of(turn: Turn, shards: Iterable[str]) -> dict[str, str]:
    return {id: domain_of(turn, id) for id in shards}


def kept_together(turn: Turn, copies: Copies) -> Keys:
    """Keys with several copies, all of them in one domain, where there are others."""
    by_domain: dict[str, list[Keys]] = {}
    for id, keys in copies.items():
        if id not in turn.intent.places or id not in turn.facts.components:
            continue  # a plan keeps what cordoned shards held, until the next one
        by_domain.setdefault(domain_of(turn, id), []).append(keys)
    if len(by_domain) < 2:
        return NO_KEYS
    together = NO_KEYS
    for domain, held in by_domain.items():
        others = (keys for other, there in by_domain.items() if other != domain for keys in there)
        elsewhere = NO_KEYS.union(*others)
        copies_here = Counter(key for keys in held for key in keys - elsewhere)
        together |= {key for key, number in copies_here.items() if number > 1}
    return together
