"""What all dispatchers did since the gateway began to look, from what each told of itself.

Pure. Dispatchers come and go with their engines; what one did that has ended stays counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from prometheus_client.core import Metric as Family

from actors.dispatch.report import BOUNDS_S
from orchestrator.api.models import DispatcherView, DispatchView
from orchestrator.telemetry.families import family
from orchestrator.telemetry.table import BY_NAME

COUNTS = ("calls", "failed", "starved", "resent", "late", "refused", "lost_links")
SPANS = ("send", "wait", "service")
_RANGES = len(BOUNDS_S) + 1

Numbers = tuple[float, ...]
"""COUNTS, and then for each of SPANS the ranges and the sum."""

NOTHING: Numbers = (0.0,) * (len(COUNTS) + len(SPANS) * (_RANGES + 1))


@dataclass(frozen=True, slots=True)
class DispatchTotals:
    """total: of all; known: what each dispatcher last told."""

    total: Numbers = NOTHING
    known: Mapping[str, Numbers] = field(default_factory=dict)


def advance_dispatch(
    before: DispatchTotals, dispatchers: Sequence[DispatcherView]
) -> DispatchTotals:
    """A dispatcher whose numbers went back is another process of that name and counts from zero."""
    now = {one.id: _numbers(one.did) for one in dispatchers if one.did is not None}
    total = before.total
    for id, numbers in now.items():
        known = before.known.get(id, NOTHING)
        if any(new < old for new, old in zip(numbers, known, strict=True)):
            known = NOTHING
        total = tuple(t + n - k for t, n, k in zip(total, numbers, known, strict=True))
    return DispatchTotals(total, now)


def _numbers(did: DispatchView) -> Numbers:
    counts = (
        did.calls,
        did.failed,
        did.starved,
        did.resent,
        sum(shard.late for shard in did.shards),
        sum(shard.refused for shard in did.shards),
        sum(shard.lost for shard in did.shards),
    )
    spans = [(*of.counts, of.sum_s) for of in (did.sent, did.waited, did.served)]
    return tuple(map(float, chain(counts, *spans)))


def dispatch_families(totals: DispatchTotals) -> Iterable[Family]:
    """Everything of the table's DISPATCH."""
    for name, value in zip(COUNTS, totals.total, strict=False):
        yield family(f"expertmesh_dispatch_{name}_total", [((), value)])
    for number, name in enumerate(SPANS):
        begin = len(COUNTS) + number * (_RANGES + 1)
        ranges = totals.total[begin : begin + _RANGES]
        yield _histogram(
            f"expertmesh_dispatch_{name}_seconds", ranges, totals.total[begin + _RANGES]
        )


def _histogram(name: str, ranges: Sequence[float], sum_s: float) -> Family:
    made = Family(name, BY_NAME[name].help, "histogram")
    below = 0.0
    for bound, count in zip([*map(str, BOUNDS_S), "+Inf"], ranges, strict=True):
        below += count
        made.add_sample(f"{name}_bucket", {"le": bound}, below)
    made.add_sample(f"{name}_count", {}, below)
    made.add_sample(f"{name}_sum", {}, sum_s)
    return made
