"""From an epoch of the control plane to the view that dispatchers follow."""

from collections.abc import Mapping

import numpy as np

from actors.dispatch.mesh_view import MeshView, Peer, ViewVersion
from actors.wire.address import parse_address
from actors.wire.frame import RowCoding
from orchestrator.actor_names import ActorName
from orchestrator.config.serving import DeviceIpc
from orchestrator.control.lifecycle import Kind
from orchestrator.control.planning import Grid
from orchestrator.control.state import Description, Epoch, State
from orchestrator.runtime.mesh import Mesh
from placement.cost_model import TYPICAL_COST, DeviceCost
from placement.epoch import EMPTY_SLOT, PlanEpoch

PeerKey = tuple[str, int]
"""Id and incarnation."""


def peer_of(id: str, said: Description, cost: DeviceCost = TYPICAL_COST) -> Peer:
    addresses = tuple(map(parse_address, said.addresses))
    return Peer(id, said.incarnation, said.node, addresses, cost)


def view_of(state: State, mesh: Mesh, peers: Mapping[PeerKey, Peer]) -> MeshView:
    """The view of `state.intent.epoch`.

    peers: processes that were described, by id and incarnation. One that the epoch names and nobody
    here has met is listed where a process of its place listens first; nobody may answer there.
    """
    epoch = state.intent.epoch
    assert epoch is not None, "there is something to publish"
    config = mesh.config
    shards = sorted(epoch.copies)
    routers = [id for id in sorted(epoch.incarnations) if id not in epoch.copies]
    return MeshView(
        version=ViewVersion(*epoch.id),
        mesh=config.mesh.name,
        model_path=str(config.model.path),
        fingerprint=mesh.fingerprint,
        router_mode=config.router.mode,
        soft_deadline_s=config.router.soft_deadline_s,
        call_deadline_s=config.router.call_deadline_s,
        expert_wait_s=config.router.expert_wait_s,
        rows_between_nodes=RowCoding[config.router.rows_between_nodes.name],
        device_ipc=config.router.device_ipc is DeviceIpc.AUTO,
        epoch=_plan_epoch(state, epoch, shards),
        shards=tuple(_weighted(_peer(id, state, mesh, peers), epoch) for id in shards),
        routers=tuple(
            peers[id, epoch.incarnations[id]]
            for id in routers
            if (id, epoch.incarnations[id]) in peers
        ),
    )


def _plan_epoch(state: State, epoch: Epoch, shards: list[str]) -> PlanEpoch:
    grid = Grid.of(state.intent.keys)
    experts = grid.array(epoch.copies, shards)
    shares = (experts != EMPTY_SLOT).astype(np.float64)
    return PlanEpoch(epoch.id.number, grid.experts, grid.layers, experts, shares)


def _peer(id: str, state: State, mesh: Mesh, peers: Mapping[PeerKey, Peer]) -> Peer:
    epoch = state.intent.epoch
    assert epoch is not None
    known = peers.get((id, epoch.incarnations[id]))
    if known is not None:
        return known
    place = state.intent.places.get(id)
    name = ActorName(Kind.SHARD, id, place.generation if place else 0)
    address = parse_address(mesh.run_dir.socket(name.socket))
    return Peer(id, epoch.incarnations[id], "", (address,))


def _weighted(peer: Peer, epoch: Epoch) -> Peer:
    weight = epoch.weights.get(peer.id, 1.0)
    return peer if weight == 1.0 else Peer(
        peer.id, peer.incarnation, peer.node, peer.addresses, peer.cost, weight
    )  # fmt: skip
