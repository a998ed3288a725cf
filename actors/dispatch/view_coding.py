"""Views as messages of the directory: whole, or as what differs from one that the receiver has.

A message names the `base` that it builds on. Peers and slots that it does not mention are those of
the base: peers by id, so that shards may join, leave or change places. Slots travel as (index,
value) pairs where few differ, otherwise as whole arrays. A view that only changes weights is a few
hundred bytes and shares plan epoch and routing table with its base.

Nothing that was received is used before it was checked: dtypes, shapes and indices here, fields
by the heads' types, the plan's invariants by `PlanEpoch`.
"""

from collections.abc import Sequence

import numpy as np

from actors.dispatch.mesh_view import MeshView, Peer, ViewVersion
from actors.dispatch.view_messages import (
    FROM_DIRECTORY,
    EpochPart,
    PeerPart,
    PeersPart,
    SettingsPart,
    Version,
    ViewHead,
)
from actors.wire.address import parse_address
from actors.wire.frame import FrameError, RowCoding
from actors.wire.messages import Array, pack, read_head, unpack_arrays
from placement.cost_model import DeviceCost
from placement.epoch import EMPTY_SLOT, PlanEpoch

MAX_SLOTS = 1 << 22
"""Of an epoch, over layers and shards: 256 layers on 256 shards with 64 slots each."""
WHOLE_FROM = 1 / 3
"""Part of the slots that differ from which on whole arrays take fewer bytes than pairs."""

WHOLE_DTYPES = ("int32", "float64")
PAIRS_DTYPES = ("int32", "int32", "int32", "float64")


def encode_view(view: MeshView, base: MeshView | None = None) -> bytes:
    """The message for a receiver that has decoded `base` before, or nothing."""
    epoch, arrays = _encode_epoch(view, base)
    head = ViewHead(
        version=_numbers(view.version),
        base=_numbers(base.version) if base else None,
        settings=SettingsPart(
            mesh=view.mesh,
            model_path=view.model_path,
            fingerprint=view.fingerprint,
            router_mode=view.router_mode,
            soft_deadline_s=view.soft_deadline_s,
            call_deadline_s=view.call_deadline_s,
            expert_wait_s=view.expert_wait_s,
            rows_between_nodes=view.rows_between_nodes.name,
            device_ipc=view.device_ipc,
        ),
        shards=_encode_peers(view.shards, base.shards if base else None),
        routers=_encode_peers(view.routers, base.routers if base else None),
        epoch=epoch,
    )
    return pack(head, arrays)


def decode_view(text: bytes, body: bytes, base: MeshView | None = None) -> MeshView:
    """The view of a message's head and body. base: the view of the message before it.

    Raises:
        ValueError: no view, one with another base, or values that make no valid plan.
    """
    head = read_head(FROM_DIRECTORY, text)
    if head.base != (_numbers(base.version) if base and head.base else None):
        raise FrameError(
            f"view builds on {head.base}, the one before it was {base and base.version}"
        )
    if head.base is None:
        base = None
    settings = head.settings
    shards = _decode_peers(head.shards, base.shards if base else None)
    return MeshView(
        version=ViewVersion(*head.version),
        mesh=settings.mesh,
        model_path=settings.model_path,
        fingerprint=settings.fingerprint,
        router_mode=settings.router_mode,
        soft_deadline_s=settings.soft_deadline_s,
        call_deadline_s=settings.call_deadline_s,
        expert_wait_s=settings.expert_wait_s,
        rows_between_nodes=RowCoding[settings.rows_between_nodes],
        device_ipc=settings.device_ipc,
        epoch=_decode_epoch(head, unpack_arrays(head, body), shards, base),
        shards=shards,
        routers=_decode_peers(head.routers, base.routers if base else None),
    )


# -- peers


def _encode_peers(peers: Sequence[Peer], base: Sequence[Peer] | None) -> PeersPart | None:
    if peers == base:
        return None
    known = {peer.id: peer for peer in base or ()}
    order = tuple(peer.id for peer in peers)
    return PeersPart(
        order=None if base is not None and order == tuple(known) else order,
        changed=tuple(_encode_peer(peer) for peer in peers if known.get(peer.id) != peer),
    )


def _encode_peer(peer: Peer) -> PeerPart:
    return PeerPart(
        id=peer.id,
        incarnation=peer.incarnation,
        node=peer.node,
        addresses=tuple(map(str, peer.addresses)),
        cost=(peer.cost.call_s, peer.cost.read_s, peer.cost.row_s),
        weight=peer.weight,
    )


def _decode_peers(part: PeersPart | None, base: Sequence[Peer] | None) -> tuple[Peer, ...]:
    if part is None:
        if base is None:
            raise FrameError("view leaves out its peers and has no base")
        return tuple(base)
    known = {peer.id: peer for peer in base or ()}
    before = len(known)
    known |= {peer.id: _decode_peer(peer) for peer in part.changed}
    if part.order is None:
        if base is None or len(known) > before:
            raise FrameError("view leaves out the order of its peers")
        return tuple(known.values())
    unknown = [name for name in part.order if name not in known]
    if unknown:
        raise FrameError(f"view names peers {unknown[:8]} and does not say where they are")
    return tuple(known[name] for name in part.order)


def _decode_peer(part: PeerPart) -> Peer:
    return Peer(
        part.id,
        part.incarnation,
        part.node,
        tuple(map(parse_address, part.addresses)),
        DeviceCost(*part.cost),
        part.weight,
    )


# -- the plan epoch


def _encode_epoch(
    view: MeshView, base: MeshView | None
) -> tuple[EpochPart | None, tuple[Array, ...]]:
    epoch = view.epoch
    whole = EpochPart(
        number=epoch.number,
        num_experts=epoch.num_experts,
        layers=epoch.layers,
        shape=epoch.experts.shape,
        whole=True,
    )
    if base is not None and epoch is base.epoch and _same_order(view, base):
        return None, ()
    if base is None or not _comparable(epoch.num_experts, epoch.layers, base.epoch):
        return whole, (epoch.experts, epoch.shares)
    experts, shares = _carry_over(base, view.shards, epoch.experts.shape[2])
    moved = np.flatnonzero(epoch.experts != experts).astype(np.int32)
    shared = np.flatnonzero(epoch.shares != shares).astype(np.int32)
    if moved.size + shared.size > 2 * WHOLE_FROM * epoch.experts.size:
        return whole, (epoch.experts, epoch.shares)
    pairs = (moved, epoch.experts.flat[moved], shared, epoch.shares.flat[shared])
    return whole.model_copy(update={"whole": False}), pairs


def _decode_epoch(
    head: ViewHead, arrays: tuple[Array, ...], shards: Sequence[Peer], base: MeshView | None
) -> PlanEpoch:
    part = head.epoch
    if part is None:
        if base is None or arrays or (head.shards is not None and head.shards.order is not None):
            raise FrameError("view leaves out its plan epoch and has no base with these shards")
        return base.epoch
    size = part.shape[0] * part.shape[1] * part.shape[2]
    if size > MAX_SLOTS or part.shape[1] != len(shards):
        raise FrameError(f"plan epoch of shape {part.shape} for {len(shards)} shards")
    if tuple(array.dtype.name for array in arrays) != (
        WHOLE_DTYPES if part.whole else PAIRS_DTYPES
    ):
        raise FrameError("plan epoch with other arrays than it should have")
    if part.whole:
        experts, shares = arrays
    else:
        if base is None or not _comparable(part.num_experts, part.layers, base.epoch):
            raise FrameError("plan epoch names what differs and has no base with its layers")
        experts, shares = _carry_over(base, shards, part.shape[2])
        _put(experts, *arrays[:2])
        _put(shares, *arrays[2:])
    if experts.shape != part.shape:
        raise FrameError(f"plan epoch of shape {experts.shape}, not {part.shape}")
    return PlanEpoch(part.number, part.num_experts, part.layers, experts, shares)


def _comparable(num_experts: int, layers: tuple[int, ...], base: PlanEpoch) -> bool:
    return (num_experts, layers) == (base.num_experts, base.layers)


def _same_order(view: MeshView, base: MeshView) -> bool:
    return [peer.id for peer in view.shards] == [peer.id for peer in base.shards]


def _carry_over(base: MeshView, shards: Sequence[Peer], slots: int) -> tuple[Array, Array]:
    """Experts and shares [L, D, slots] of the base, each shard's where the same id is now."""
    before = {peer.id: shard for shard, peer in enumerate(base.shards)}
    was = [(shard, before[peer.id]) for shard, peer in enumerate(shards) if peer.id in before]
    now, then = np.array(was, np.intp).reshape(-1, 2).T
    kept = min(slots, base.epoch.experts.shape[2])
    shape = (len(base.epoch.layers), len(shards), slots)
    experts, shares = np.full(shape, EMPTY_SLOT, np.int32), np.zeros(shape)
    experts[:, now, :kept] = base.epoch.experts[:, then, :kept]
    shares[:, now, :kept] = base.epoch.shares[:, then, :kept]
    return experts, shares


def _put(target: Array, indices: Array, values: Array) -> None:
    if indices.ndim != 1 or indices.shape != values.shape:
        raise FrameError(f"{indices.shape} indices for {values.shape} values")
    if indices.size and not 0 <= indices.min() <= indices.max() < target.size:
        raise FrameError(f"index beyond the {target.size} slots of the plan epoch")
    target.reshape(-1)[indices] = values


def _numbers(version: ViewVersion) -> Version:
    return version.term, version.number
