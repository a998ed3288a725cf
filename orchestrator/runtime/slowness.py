"""How slow shards are, from what dispatchers report. Pure but for what it remembers.

A report's scale is the time that a shard's kernel took over the time that its cost predicts. A
busy machine slows all of its shards down, so a shard is compared with the others of its mesh; only
one that is clearly slower than usual is slow.
"""

from collections.abc import Mapping

from actors.dispatch.report import DispatchReport

SLOW = 1.5
"""Times as slow as usual that are not put down to noise."""


class Slowness:
    """Remembers each dispatcher's last report, to see which shards have answered since."""

    def __init__(self) -> None:
        self._scales: dict[str, Mapping[str, float]] = {}

    def news(self, dispatcher: str, report: DispatchReport) -> dict[str, float]:
        """Slowness of the shards that have answered this dispatcher since its last report: 1 where
        a shard is about as fast as planned for, compared with the others; 3 for three times as
        slow. A shard that did not answer is left out: nobody knows how it does."""
        scales = {shard.id: shard.scale for shard in report.shards if shard.incarnation}
        before = self._scales.get(dispatcher, {})
        self._scales[dispatcher] = scales
        answered = [id for id, scale in scales.items() if scale != before.get(id, 1.0)]
        usual = _usual(scales)
        return {id: _slowness(scales[id] / usual) for id in answered}

    def forget(self, dispatcher: str) -> None:
        """Nothing is known of it any more."""
        self._scales.pop(dispatcher, None)


def _usual(scales: Mapping[str, float]) -> float:
    """The median; of two the smaller one, so that a shard is not compared with itself."""
    ordered = sorted(scales.values())
    return ordered[(len(ordered) - 1) // 2] if ordered else 1.0


def _slowness(ratio: float) -> float:
    return ratio if ratio >= SLOW else 1.0
