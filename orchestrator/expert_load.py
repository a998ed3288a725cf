"""How much work each expert got: the body of `/api/v1/expert-load`."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TrafficTokens:
    """tokens: of one kind of traffic and one content, such as text or image, that were computed
    since the controller began; an estimate (`orchestrator.traffic_load`)."""

    kind: str
    content: str
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class ExpertLoad:
    """counts: int64 [L, E], assignments computed since the shards started, summed over shards;
    by_shard: int64 [L, E] each, by shard id. traffic: the kinds whose load is known by itself."""

    model: str
    layers: tuple[int, ...]
    counts: npt.NDArray[np.int64]
    by_shard: dict[str, npt.NDArray[np.int64]]
    traffic: tuple[TrafficTokens, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "layers": list(self.layers),
            "counts": self.counts.tolist(),
            "by_shard": {shard: counts.tolist() for shard, counts in self.by_shard.items()},
            "traffic": [asdict(tokens) for tokens in self.traffic],
        }

    def to_arrays(self) -> dict[str, Any]:
        """The same with arrays for lists: between processes of the mesh, where lists of a large
        model's counts would take seconds of the controller's loop."""
        return {
            "model": self.model,
            "layers": list(self.layers),
            "counts": self.counts,
            "by_shard": self.by_shard,
            "traffic": [asdict(tokens) for tokens in self.traffic],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ExpertLoad":
        """From either form."""
        return cls(
            data["model"],
            tuple(data["layers"]),
            np.array(data["counts"], np.int64),
            {shard: np.array(counts, np.int64) for shard, counts in data["by_shard"].items()},
            tuple(TrafficTokens(**tokens) for tokens in data.get("traffic", ())),
        )


def sum_load(
    model: str, layers: tuple[int, ...], by_shard: dict[str, npt.NDArray[np.int64]], experts: int
) -> ExpertLoad:
    """Total over shards; by_shard: [L, E] each."""
    total = np.zeros((len(layers), experts), np.int64)
    for counts in by_shard.values():
        total += counts
    return ExpertLoad(model, layers, total, by_shard)
