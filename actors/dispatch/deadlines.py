"""When a shard is late, and when it is given up.

**Soft** deadline: later than a shard has any good reason to be. Its rows go to other replicas too,
the first answer wins, and it gets no more rows until it has answered what it owes. It follows from
what the shard's calls cost, as measured (`placement.cost_model`), times how long they really took
lately, and is at most the view's `soft_deadline_s` for calls that should take less than that.

**Hard** deadline: the view's `call_deadline_s`. The link is closed, and the shard is taken back
after it has greeted again. Both count from the posting or from the shard's last answer, whichever
is later: a shard with a queue is slow, not hung.
"""

from numba.extending import register_jitable

SOFT_FLOOR_S = 0.1
"""Shortest soft deadline: processes that share cores with others wait that long for one."""
SOFT_FACTOR = 4.0
"""Calls may take so many times as long as predicted: others are served in between."""
LEARNING_RATE = 1 / 8
"""Weight of the newest call in the average of measured over predicted time."""

OUTLIER = 4.0
"""A call counts as at most so many times the average: the first ones compile."""
SMALLEST_SCALE = 1e-6
"""The average never becomes 0, from which it could not grow."""


@register_jitable  # type: ignore[untyped-decorator]
def soft_wait_s(predicted_s: float, longest_s: float) -> float:
    """Time that a shard has for an answer. longest_s: of the view."""
    wait_s = max(SOFT_FLOOR_S, SOFT_FACTOR * predicted_s)
    if predicted_s < longest_s:
        return min(wait_s, longest_s)
    return wait_s
