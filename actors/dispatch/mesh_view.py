"""What a dispatcher knows of the mesh: the plan epoch and where the shards and routers listen.

The controller's directory sends it as JSON; this module reads and writes that text and refuses what
does not fit, naming the field.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.dispatch.routing_table import RoutingTable, routing_table
from actors.wire.address import Address, parse_address
from actors.wire.frame import RowCoding
from placement.cost_model import TYPICAL_COST, DeviceCost, cost_table
from placement.epoch import PlanEpoch

SCHEMA = 3


@dataclass(frozen=True, slots=True)
class Peer:
    """A shard or router. node: identity of the machine; addresses: best first for that node.

    id: stays when the process is replaced; incarnation: does not, 0 where it is not known.
    cost: of calls to a shard. weight: the part of its speed that is counted on; a shard of weight 0
    gets rows only where no other holds the expert.
    """

    id: str
    incarnation: int
    node: str
    addresses: tuple[Address, ...]
    cost: DeviceCost = TYPICAL_COST
    weight: float = 1.0

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


@dataclass(frozen=True, slots=True, order=True)
class ViewVersion:
    """Position of a view among all views of a mesh; of two, the greater one is newer.

    term: of the controller that published it, greater with each start of a controller.
    number: counts the views of a term, from 1.
    """

    term: int
    number: int

    def __str__(self) -> str:
        return f"{self.term}.{self.number}"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MeshView:
    """One snapshot. `shards[i]` is shard i of the epoch.

    fingerprint: of the checkpoint the shards hold (`actors.experts.fingerprint`).
    soft_deadline_s: longest wait for a shard before its rows are also sent to another replica.
    call_deadline_s: after it a shard that has not answered is given up.
    rows_between_nodes: how rows travel to shards on other nodes; on one node always as BF16.
    table, cost: what a dispatcher chooses replicas by, made with the view; cost is float64 [D, 3],
    see `placement.cost_model.cost_table`.
    """

    version: ViewVersion
    mesh: str
    model_path: str
    fingerprint: str
    router_mode: str
    soft_deadline_s: float
    call_deadline_s: float
    expert_wait_s: float
    epoch: PlanEpoch
    shards: tuple[Peer, ...]
    routers: tuple[Peer, ...] = ()
    rows_between_nodes: RowCoding = RowCoding.BF16

    table: RoutingTable = field(init=False)
    cost: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.shards) != self.epoch.num_shards:
            raise ValueError(
                f"plan for {self.epoch.num_shards} shards, {len(self.shards)} are listed"
            )
        cost = cost_table(
            [shard.cost for shard in self.shards], [shard.weight for shard in self.shards]
        )
        cost.setflags(write=False)
        object.__setattr__(self, "table", routing_table(self.epoch))
        object.__setattr__(self, "cost", cost)

    def with_routers(self, routers: tuple[Peer, ...], version: ViewVersion) -> "MeshView":
        """The same mesh with other routers."""
        return replace(self, routers=routers, version=version)


def _peer_to_json(peer: Peer) -> dict[str, Any]:
    return {
        "id": peer.id,
        "incarnation": peer.incarnation,
        "node": peer.node,
        "addresses": [str(address) for address in peer.addresses],
        "cost": [peer.cost.call_s, peer.cost.read_s, peer.cost.row_s],
        "weight": peer.weight,
    }


def _peer_from_json(data: dict[str, Any]) -> Peer:
    return Peer(
        data["id"],
        int(data["incarnation"]),
        data["node"],
        tuple(parse_address(text) for text in data["addresses"]),
        DeviceCost(*map(float, data["cost"])),
        float(data["weight"]),
    )


def view_to_json(view: MeshView) -> dict[str, Any]:
    """JSON form, the inverse of `view_from_json`."""
    return {
        "schema": SCHEMA,
        "version": [view.version.term, view.version.number],
        "mesh": view.mesh,
        "model_path": view.model_path,
        "fingerprint": view.fingerprint,
        "router_mode": view.router_mode,
        "soft_deadline_s": view.soft_deadline_s,
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
        return MeshView(
            version=ViewVersion(*map(int, data["version"])),
            mesh=data["mesh"],
            model_path=data["model_path"],
            fingerprint=data["fingerprint"],
            router_mode=data["router_mode"],
            soft_deadline_s=float(data["soft_deadline_s"]),
            call_deadline_s=float(data["call_deadline_s"]),
            expert_wait_s=float(data["expert_wait_s"]),
            epoch=epoch,
            shards=tuple(map(_peer_from_json, data["shards"])),
            routers=tuple(map(_peer_from_json, data["routers"])),
            rows_between_nodes=RowCoding[data["rows_between_nodes"].upper()],
        )
    except KeyError as error:
        raise ValueError(f"mesh view lacks or does not know {error}") from None
