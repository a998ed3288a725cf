"""Small meshes for tests of the controller's parts."""

from collections.abc import Sequence
from typing import cast

import numpy as np
from ray.actor import ActorHandle

from actors.dispatch.mesh_view import MeshView, Peer, ViewVersion
from actors.wire.address import Address
from placement.epoch import EMPTY_SLOT, PlanEpoch

NO_HANDLE = cast(ActorHandle, None)
"""For components whose actor a test does not call."""


def epoch(held: Sequence[Sequence[int]], num_experts: int = 4) -> PlanEpoch:
    """One layer, number 2; shard d holds the experts `held[d]`."""
    slots = max(map(len, held))
    experts = np.full((1, len(held), slots), EMPTY_SLOT, np.int32)
    for shard, own in enumerate(held):
        experts[0, shard, : len(own)] = own
    return PlanEpoch(1, num_experts, (2,), experts, np.ones(experts.shape))


def view(number: int = 1, mesh: str = "test") -> MeshView:
    shards = tuple(Peer(name, 7, "node", (Address(f"/tmp/{name}"),)) for name in ("s0", "s1"))
    return MeshView(
        version=ViewVersion(1, number), mesh=mesh, model_path="/model", fingerprint="fingerprint",
        router_mode="embedded", soft_deadline_s=0.25,
        call_deadline_s=5.0, expert_wait_s=5.0, epoch=epoch([[0, 1], [2, 3]]), shards=shards,
    )  # fmt: skip
