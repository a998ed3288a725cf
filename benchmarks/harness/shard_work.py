"""How evenly a mesh's shards share the work, seen from the outside."""

import time
from dataclasses import dataclass, field

import numpy as np

from tests.e2e.mesh_process import MeshProcess


@dataclass(slots=True)
class ShardWork:
    """Totals of each shard's counts [layers], second by second. Times are of the wall clock."""

    mesh: MeshProcess
    seen: list[tuple[float, dict[str, np.ndarray]]] = field(default_factory=list)
    weights: list[tuple[float, dict[str, float]]] = field(default_factory=list)

    def look(self) -> None:
        said = self.mesh.get("/api/v1/expert-load").json()
        shards = self.mesh.get("/api/v1/shards").json()["shards"]
        counts = {shard: np.array(c).sum(axis=1) for shard, c in said["by_shard"].items()}
        now_s = time.time()
        self.seen.append((now_s, counts))
        self.weights.append((now_s, {shard["id"]: shard["weight"] for shard in shards}))

    def balancedness(self, from_s: float, until_s: float) -> float:
        """Mean over max of the shards' work in that time, mean of the layers; a shard that the
        mesh found slow, and counts on with a part of its speed, is to get that part."""
        inside = [n for n, (at_s, _) in enumerate(self.seen) if from_s <= at_s <= until_s]
        if len(inside) < 2:
            return float("nan")
        first, last = self.seen[inside[0]][1], self.seen[inside[-1]][1]
        done = np.array([last[shard] - first.get(shard, 0) for shard in last], float)
        told = [self.weights[n][1] for n in inside]
        speed = np.array([np.mean([one.get(shard, 1.0) for one in told]) for shard in last])
        return even(done, speed)

    def slowest(self, from_s: float) -> float:
        """The least weight that a shard had since."""
        told = [one for at_s, one in self.weights if at_s >= from_s]
        return min((weight for one in told for weight in one.values()), default=1.0)


def even(done: np.ndarray, speed: np.ndarray) -> float:
    """Of the work [D, L] of shards with these speeds [D]."""
    usual = done.sum(axis=0) / speed.sum()
    longest = (done / speed[:, None]).max(axis=0)
    return float((usual / np.maximum(longest, 1.0)).mean())
