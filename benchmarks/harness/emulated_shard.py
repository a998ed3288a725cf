"""A shard process that takes as long as a device of given cost would, by sleeping.

    python -m benchmarks.harness.emulated_shard '{"listen": "tcp:10.77.0.2:0", ...}'

Behind the product's own shard server, so frames, links and merging are real. Sleeping takes no
core, so several such devices are as quick side by side as alone.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from actors.experts.formats.bf16 import BF16
from actors.experts.spec import Activation, ExpertSpec
from actors.logs import start_logging
from actors.wire.address import parse_address
from placement.cost_model import DeviceCost

SECRET = b"emulated shards"


@dataclass(frozen=True, slots=True)
class EmulatedShard:
    """listen: where; cost: of its calls; num_experts, hidden: of the model, which has `layers`."""

    listen: str
    cost: DeviceCost
    num_experts: int
    top_k: int
    hidden: int
    layers: tuple[int, ...] = (0,)
    secret: str = SECRET.decode()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def spec(self) -> ExpertSpec:
        return ExpertSpec(
            "Emulated", Path("/nowhere"), self.layers, self.num_experts, self.top_k, self.hidden,
            128, BF16, Activation(),
        )  # fmt: skip


class SleepingKernel:
    """`ExpertKernel` whose calls take what `cost` says."""

    def __init__(self, cost: DeviceCost) -> None:
        self._cost = cost

    def load(self, layer: int, experts: list[int]) -> None:
        pass

    def compute(
        self,
        layer: int,
        rows: torch.Tensor,
        row_index: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        end_s = time.perf_counter() + self._cost.seconds(experts.unique().numel(), len(experts))
        sums = torch.empty(rows.shape) if out is None else out
        sums.zero_()
        time.sleep(max(0.0, end_s - time.perf_counter()))
        return sums

    def resident_bytes(self) -> int:
        return 0

    def describe(self) -> str:
        return "emulated: sleeps"


def main(text: str) -> None:
    from actors.shard.server import ShardServer

    given: dict[str, Any] = json.loads(text)
    cost, layers = DeviceCost(**given["cost"]), tuple(given["layers"])
    shard = EmulatedShard(**{**given, "cost": cost, "layers": layers})
    start_logging("WARNING")
    torch.set_num_threads(1)
    kernel: Any = SleepingKernel(shard.cost)
    server = ShardServer(shard.spec, kernel, [parse_address(shard.listen)], shard.secret.encode())
    print(server.addresses[0], flush=True)
    server.run()


if __name__ == "__main__":
    main(sys.argv[1])
