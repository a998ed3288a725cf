"""What calls take: as the shard's cost predicts, as they took lately, and when the first is late.

service: float64 [D, 5], a row for each shard with the columns CALL_S ... HEARD_S of `shard_links`.
"""

import numpy as np

from actors.dispatch.deadlines import LEARNING_RATE, OUTLIER, SMALLEST_SCALE
from actors.dispatch.shard_links import CALL_S, HEARD_S, READ_S, ROW_S, SCALE
from actors.wire import slots as part
from native.compiled import compiled


@compiled()
def predict(service, shard, assignments):  # type: ignore[no-untyped-def]
    """Seconds of a call by the shard's cost, if every assignment is to another expert."""
    per_assignment_s = service[shard, READ_S] + service[shard, ROW_S]
    return service[shard, CALL_S] + per_assignment_s * assignments


@compiled()
def learn(parts, first, service, now_s):  # type: ignore[no-untyped-def]
    """Note who answered, and how long its kernel took against the prediction."""
    for shard in range(parts.shape[0]):
        if parts[shard, part.STATUS] != part.GOOD:
            continue
        service[shard, HEARD_S] = now_s
        predicted_s = predict(service, shard, first[shard + 1] - first[shard])
        if predicted_s > 0:
            scale = service[shard, SCALE]
            ratio = min(1e-6 * parts[shard, part.COMPUTE_US] / predicted_s, OUTLIER * scale)
            service[shard, SCALE] = max(scale + LEARNING_RATE * (ratio - scale), SMALLEST_SCALE)


@compiled()
def first_due(parts, soft_s):  # type: ignore[no-untyped-def]
    """Shortest soft deadline of those that have not answered, infinite if all have."""
    shortest_s = np.inf
    for shard in range(parts.shape[0]):
        if parts[shard, part.STATUS] == part.AWAY:
            shortest_s = min(shortest_s, soft_s[shard])
    return shortest_s
