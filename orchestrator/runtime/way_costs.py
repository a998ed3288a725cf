"""What the ways to shards cost, as the planner counts on it: from what dispatchers measured.

Ways within a node are not counted: they take as long to every shard there, and what a busy node's
probes show is mostly who waited for a core. A shard that some engines have on their node and others
do not costs the mean over all of them. Measurements are noisy, and each change of a shard's speed
may move experts: a way that was measured again counts as it was until it is clearly another one.
"""

from collections.abc import Iterable, Mapping

from actors.dispatch.report import DispatchReport
from placement.cost_model import WayCost

OTHER = 1.5
"""Times as long, or as short, as what was counted on so far."""
NO_WAY = WayCost(0.0, 0.0)


class WayCosts:
    """By shard id, of those that were measured."""

    def __init__(self) -> None:
        self._known: dict[str, WayCost] = {}

    def of(self, shard: str) -> WayCost | None:
        """None: not measured, or on the node of everybody who calls it."""
        return self._known.get(shard)

    def learn(
        self, reports: Iterable[tuple[str, DispatchReport]], nodes: Mapping[str, str]
    ) -> None:
        """reports: each with the node of its dispatcher. nodes: of the shards."""
        ways: dict[str, list[WayCost]] = {}
        for node, report in reports:
            for shard in report.shards:
                if not (shard.round_trip_s and shard.bytes_per_s) or shard.id not in nodes:
                    continue
                near = nodes[shard.id] == node
                way = NO_WAY if near else WayCost(shard.round_trip_s, 1.0 / shard.bytes_per_s)
                ways.setdefault(shard.id, []).append(way)
        for id, found in ways.items():
            mean = WayCost(
                sum(way.round_trip_s for way in found) / len(found),
                sum(way.byte_s for way in found) / len(found),
            )
            if _is_other(self._known.get(id, NO_WAY), mean):
                self._known[id] = mean


def _is_other(before: WayCost, now: WayCost) -> bool:
    pairs = ((before.round_trip_s, now.round_trip_s), (before.byte_s, now.byte_s))
    return any(new > OTHER * old or old > OTHER * new for old, new in pairs)
