"""What a dispatcher knows of the mesh: the plan epoch and where the shards and routers listen.

The controller's directory sends it as JSON; this module reads and writes that text and refuses what
does not fit, naming the field.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.wire.address import Address, parse_address
from actors.wire.frame import RowCoding
from placement.epoch import PlanEpoch

SCHEMA = 2


@dataclass(frozen=True, slots=True)
class Peer:
    """A shard or router. node: identity of the machine; addresses: best first for that node."""

    id: str
    node: str
    addresses: tuple[Address, ...]
    speed: float = 1.0

    def address_from(self, node: str) -> Address:
        """Where a client on `node` connects: the Unix socket at home, TCP from elsewhere.

        Raises:
            LookupError: the peer has no address for other nodes.
        """
        for address in self.addresses:
            if address.is_unix == (node == self.node):
                return address
        if node == self.node and self.addresses:
            return self.addresses[0]
        raise LookupError(f"{self.id} on node {self.node} has no address for node {node}")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MeshView:
    """One snapshot. `shards[i]` is shard i of the epoch.

    fingerprint: of the checkpoint the shards hold (`actors.experts.fingerprint`).
    rows_between_nodes: how rows travel to shards on other nodes; on one node always as BF16.
    """

    mesh: str
    model_path: str
    fingerprint: str
    router_mode: str
    call_deadline_s: float
    expert_wait_s: float
    epoch: PlanEpoch
    shards: tuple[Peer, ...]
    routers: tuple[Peer, ...] = ()
    rows_between_nodes: RowCoding = RowCoding.BF16

    def with_routers(self, routers: tuple[Peer, ...]) -> "MeshView":
        """The same mesh with other routers."""
        return replace(self, routers=routers)

    @property
    def speed(self) -> np.ndarray:
        return np.array([shard.speed for shard in self.shards], np.float64)


def _peer_to_json(peer: Peer) -> dict[str, Any]:
    return {
        "id": peer.id,
        "node": peer.node,
        "addresses": [str(address) for address in peer.addresses],
        "speed": peer.speed,
    }


def _peer_from_json(data: dict[str, Any]) -> Peer:
    return Peer(
        data["id"],
        data["node"],
        tuple(parse_address(text) for text in data["addresses"]),
        float(data["speed"]),
    )


def view_to_json(view: MeshView) -> dict[str, Any]:
    """JSON form, the inverse of `view_from_json`."""
    return {
        "schema": SCHEMA,
        "mesh": view.mesh,
        "model_path": view.model_path,
        "fingerprint": view.fingerprint,
        "router_mode": view.router_mode,
        "call_deadline_s": view.call_deadline_s,
        "expert_wait_s": view.expert_wait_s,
        "rows_between_nodes": view.rows_between_nodes.name.lower(),
        "epoch": {
            "number": view.epoch.number,
            "num_experts": view.epoch.num_experts,
            "layers": list(view.epoch.layers),
            "experts": view.epoch.experts.tolist(),
            "shares": view.epoch.shares.tolist(),
        },
        "shards": [_peer_to_json(peer) for peer in view.shards],
        "routers": [_peer_to_json(peer) for peer in view.routers],
    }


def view_from_json(data: dict[str, Any]) -> MeshView:
    """Read a snapshot.

    Raises:
        ValueError: another schema, a missing field or values that make no valid plan.
    """
    if data.get("schema") != SCHEMA:
        raise ValueError(f"mesh view has schema {data.get('schema')!r}, this side reads {SCHEMA}")
    try:
        plan = data["epoch"]
        epoch = PlanEpoch(
            int(plan["number"]),
            int(plan["num_experts"]),
            tuple(plan["layers"]),
            np.array(plan["experts"], np.int32),
            np.array(plan["shares"], np.float64),
        )
        view = MeshView(
            mesh=data["mesh"],
            model_path=data["model_path"],
            fingerprint=data["fingerprint"],
            router_mode=data["router_mode"],
            call_deadline_s=float(data["call_deadline_s"]),
            expert_wait_s=float(data["expert_wait_s"]),
            epoch=epoch,
            shards=tuple(map(_peer_from_json, data["shards"])),
            routers=tuple(map(_peer_from_json, data["routers"])),
            rows_between_nodes=RowCoding[data["rows_between_nodes"].upper()],
        )
    except KeyError as error:
        raise ValueError(f"mesh view lacks or does not know {error}") from None
    if len(view.shards) != epoch.num_shards:
        raise ValueError(f"plan for {epoch.num_shards} shards, {len(view.shards)} are listed")
    return view
