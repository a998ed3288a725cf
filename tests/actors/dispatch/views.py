"""Views for tests of how they travel: random ones, and comparing two of them."""

from dataclasses import fields, replace
from typing import Any

import numpy as np

from actors.dispatch.mesh_view import MeshView, Peer, ViewVersion
from actors.dispatch.view_coding import decode_view
from actors.wire.address import Address
from actors.wire.frame import RowCoding
from actors.wire.messages import PREFIX, lengths
from placement.cost_model import DeviceCost
from placement.epoch import EMPTY_SLOT, PlanEpoch

Random = np.random.Generator


def random_peer(random: Random, name: str) -> Peer:
    call_s, read_s, row_s = (random.random(3) + 1e-9).tolist()
    return Peer(
        name,
        int(random.integers(1, 2**64, dtype=np.uint64)),
        f"node-{random.integers(3)}",
        (
            Address(f"/tmp/{name}-{random.integers(9)}"),
            Address("10.0.0.1", int(random.integers(9))),
        ),
        DeviceCost(call_s, read_s, row_s),
        float(random.choice([0.0, 0.5, 1.0])),
    )


def random_epoch(
    random: Random, shards: int, number: int = 1, num_experts: int = 6, layers: int = 3
) -> PlanEpoch:
    """Every expert on one to three shards, in slots of random order."""
    slots = num_experts + int(random.integers(2))
    held = np.full((layers, shards, slots), EMPTY_SLOT, np.int32)
    for row in range(layers):
        for expert in range(num_experts):
            copies = random.integers(1, min(3, shards) + 1)
            held[row, random.choice(shards, copies, replace=False), expert] = expert
        for shard in range(shards):
            random.shuffle(held[row, shard])
    shares = np.where(held == EMPTY_SLOT, 0.0, random.random(held.shape))
    return PlanEpoch(number, num_experts, tuple(range(1, layers + 1)), held, shares)


def random_view(random: Random, number: int = 1, shards: int = 4) -> MeshView:
    return MeshView(
        version=ViewVersion(1, number),
        mesh="test",
        model_path="/model",
        fingerprint="fingerprint",
        router_mode="embedded",
        soft_deadline_s=0.25,
        call_deadline_s=5.0,
        expert_wait_s=7.0,
        epoch=random_epoch(random, shards),
        shards=tuple(random_peer(random, f"shard-{number}-{i}") for i in range(shards)),
        routers=(random_peer(random, "router-0"),),
        rows_between_nodes=RowCoding(int(random.integers(2))),
        device_ipc=bool(random.integers(2)),
    )


def next_view(random: Random, view: MeshView) -> MeshView:
    """A random edit of a view, under the next version."""
    edit = random.choice(EDITS)
    version = ViewVersion(view.version.term, view.version.number + 1)
    return replace(edit(random, view), version=version)


def _nothing(_: Random, view: MeshView) -> MeshView:
    return view


def _weights(random: Random, view: MeshView) -> MeshView:
    shards = tuple(replace(peer, weight=float(random.random())) for peer in view.shards)
    return replace(view, shards=shards)


def _restarted(random: Random, view: MeshView) -> MeshView:
    which = int(random.integers(len(view.shards)))
    shards = list(view.shards)
    shards[which] = random_peer(random, shards[which].id)
    return replace(view, shards=tuple(shards))


def _reordered(random: Random, view: MeshView) -> MeshView:
    order = random.permutation(len(view.shards))
    epoch = view.epoch
    moved = replace(epoch, experts=epoch.experts[:, order], shares=epoch.shares[:, order])
    return replace(view, shards=tuple(view.shards[i] for i in order), epoch=moved)


def _joined(random: Random, view: MeshView) -> MeshView:
    new = random_peer(random, f"shard-{view.version.number + 1}-x")
    epoch = view.epoch
    room = ((0, 0), (0, 1), (0, 0))
    grown = replace(
        epoch,
        number=epoch.number + 1,
        experts=np.pad(epoch.experts, room, constant_values=EMPTY_SLOT),
        shares=np.pad(epoch.shares, room),
    )
    return replace(view, shards=(*view.shards, new), epoch=grown)


def _left(random: Random, view: MeshView) -> MeshView:
    stay = len(view.shards) - 1
    if stay == 0:
        return view
    epoch = random_epoch(random, stay, view.epoch.number + 1)
    return replace(view, shards=view.shards[:stay], epoch=epoch)


def _slot_moved(random: Random, view: MeshView) -> MeshView:
    """The slots of one shard change places, in one layer."""
    epoch = view.epoch
    experts, shares = epoch.experts.copy(), epoch.shares.copy()
    row, shard = random.integers(experts.shape[0]), random.integers(experts.shape[1])
    for array in (experts, shares):
        array[row, shard] = np.roll(array[row, shard], 1)
    return replace(
        view, epoch=replace(epoch, number=epoch.number + 1, experts=experts, shares=shares)
    )


def _share_changed(random: Random, view: MeshView) -> MeshView:
    shares = view.epoch.shares.copy()
    shares.flat[random.integers(shares.size)] = random.random()
    return replace(view, epoch=replace(view.epoch, shares=shares))


def _other_plan(random: Random, view: MeshView) -> MeshView:
    epoch = random_epoch(
        random, len(view.shards), view.epoch.number + 1, int(random.integers(1, 7))
    )
    return replace(view, epoch=epoch)


def _renumbered(_: Random, view: MeshView) -> MeshView:
    return replace(view, epoch=replace(view.epoch, number=view.epoch.number + 1))


def _settings(random: Random, view: MeshView) -> MeshView:
    return replace(view, call_deadline_s=float(random.random()), rows_between_nodes=RowCoding.FP8)


def _routers(random: Random, view: MeshView) -> MeshView:
    return replace(view, routers=tuple(random_peer(random, f"router-{i}") for i in range(2)))


EDITS = [
    _nothing, _weights, _restarted, _reordered, _joined, _left, _slot_moved, _share_changed,
    _other_plan, _renumbered, _settings, _routers,
]  # fmt: skip


def decoded(message: bytes, base: MeshView | None = None) -> MeshView:
    """The view of a whole message."""
    head, body = lengths(message[: PREFIX.size])
    text = message[PREFIX.size :]
    assert len(text) == head + body
    return decode_view(text[:head], text[head:], base)


def content(view: MeshView) -> dict[str, Any]:
    """All that a view consists of, for comparing."""
    found = {field.name: getattr(view, field.name) for field in fields(view)}
    epoch, table = found.pop("epoch"), found.pop("table")
    found["cost"] = found["cost"].tolist()
    found["epoch"] = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in ((field.name, getattr(epoch, field.name)) for field in fields(epoch))
    }
    found["table"] = (
        table.epoch, table.num_shards, table.num_experts, table.shards.tolist(),
        {layer: start.tolist() for layer, start in table.start.items()},
    )  # fmt: skip
    return found
