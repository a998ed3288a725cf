"""Real fakes for the data plane: a kernel whose sums are known, a view source without a network."""

import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.dispatch.mesh_view import MeshView, Peer, ViewVersion
from actors.dispatch.view_source import Follower
from actors.experts.formats.bf16 import BF16
from actors.experts.spec import Activation, ExpertSpec
from actors.kernels.base import ExpertsMissing
from actors.wire.address import Address
from actors.wire.frame import RowCoding
from actors.wire.node import node_id
from placement.epoch import EMPTY_SLOT, PlanEpoch

HIDDEN = 8


def spec(layers: Sequence[int] = (0, 1), num_experts: int = 8) -> ExpertSpec:
    return ExpertSpec(
        "FakeMoeForCausalLM", Path("/nowhere"), tuple(layers), num_experts, 2, HIDDEN, 4,
        BF16, Activation(),
    )  # fmt: skip


class AffineKernel:
    """Expert e of layer l maps a row x to (e + 1) * x + l: every mistake of routing shows."""

    def __init__(self, held: dict[int, list[int]]) -> None:
        self.held = held
        self.before_compute: Callable[[], None] = lambda: None
        self.asked: list[set[int]] = []
        """Experts of each call, also of those that were refused."""

    def load(self, layer: int, experts: list[int]) -> None:
        self.held[layer] = experts

    def compute(
        self,
        layer: int,
        rows: torch.Tensor,
        row_index: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self.before_compute()
        self.asked.append(set(experts.tolist()))
        missing = self.asked[-1] - set(self.held[layer])
        if missing:
            raise ExpertsMissing(f"layer {layer}: experts {sorted(missing)} are not here")
        picked = rows.float()[row_index.long()]
        outputs = (experts.float() + 1)[:, None] * picked + layer
        sums = torch.zeros(rows.shape) if out is None else out.zero_()
        return sums.index_add_(0, row_index.long(), weights[:, None] * outputs)

    def resident_bytes(self) -> int:
        return 0

    def describe(self) -> str:
        return "affine fake"


def expected(layer: int, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> Any:
    """What `AffineKernel`s must give for [T, H] rows: fp32 sums, rounded once."""
    x = rows.float()[:, None, :]
    outputs = (ids.float() + 1)[..., None] * x + layer
    live = (ids >= 0)[..., None]
    return torch.where(live, weights[..., None] * outputs, 0.0).sum(1).to(torch.bfloat16)


def epoch(held: Sequence[dict[int, list[int]]], number: int = 1, num_experts: int = 8) -> PlanEpoch:
    """Plan epoch in which shard d holds `held[d][layer]`."""
    layers = sorted(held[0])
    slots = max(len(experts) for shard in held for experts in shard.values())
    experts = np.full((len(layers), len(held), slots), EMPTY_SLOT, np.int32)
    for d, shard in enumerate(held):
        for row, layer in enumerate(layers):
            experts[row, d, : len(shard[layer])] = shard[layer]
    return PlanEpoch(number, num_experts, tuple(layers), experts, np.ones(experts.shape))


class StaticViews:
    """`ViewSource` set by the test."""

    def __init__(self, view: MeshView) -> None:
        self._view = view
        self._changed = threading.Condition()
        self.followers: list[Follower] = []

    def current(self) -> MeshView:
        return self._view

    def wait_change(self, seen: MeshView, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._view is not seen, timeout_s)

    def publish(self, view: MeshView) -> None:
        with self._changed:
            self._view = view
            self._changed.notify_all()

    def join(self) -> Follower:
        self.followers.append(Follower())
        return self.followers[-1]

    def leave(self, follower: Follower) -> None:
        self.followers.remove(follower)


def view(
    plan: PlanEpoch,
    addresses: Sequence[Address],
    *,
    routers: Sequence[Address] = (),
    mode: str = "embedded",
    deadline_s: float = 5.0,
    wait_s: float = 5.0,
    rows: RowCoding = RowCoding.BF16,
) -> MeshView:
    def peers(kind: str, where: Sequence[Address]) -> tuple[Peer, ...]:
        # A TCP peer pretends to be on another node, so that the client picks TCP.
        return tuple(
            Peer(f"{kind}-{i}", 0, node_id() if a.is_unix else "elsewhere", (a,))
            for i, a in enumerate(where)
        )

    return MeshView(
        version=ViewVersion(1, plan.number), mesh="test", model_path="/nowhere",
        fingerprint="fake", router_mode=mode, soft_deadline_s=0.25,
        call_deadline_s=deadline_s, expert_wait_s=wait_s, epoch=plan,
        shards=peers("shard", addresses), routers=peers("router", routers), rows_between_nodes=rows,
    )  # fmt: skip


@contextmanager
def running(server: Any) -> Any:
    """Run a server of frames in a thread for the length of a `with` block."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(5)
        assert not thread.is_alive()
