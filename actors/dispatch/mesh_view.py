"""What a dispatcher knows of the mesh: the plan epoch and where the shards and routers listen.

A view is made with all that a dispatcher looks things up in, so that following a new one is one
assignment. How views travel is in `actors.dispatch.view_coding`.
"""

from dataclasses import dataclass, field, replace
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from actors.dispatch.routing_table import RoutingTable, routing_table
from actors.wire.address import Address
from actors.wire.frame import RowCoding
from placement.cost_model import TYPICAL_COST, DeviceCost, cost_table
from placement.epoch import PlanEpoch


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

    def addresses_from(self, node: str) -> tuple[Address, ...]:
        """Where a client on `node` connects, best first: at home the Unix socket, then TCP, for
        containers of one host that share no folder; from elsewhere TCP.

        Raises:
            LookupError: the peer has no address for other nodes.
        """
        tcp = tuple(address for address in self.addresses if not address.is_unix)
        unix = tuple(address for address in self.addresses if address.is_unix)
        found = unix + tcp if node == self.node else tcp
        if not found:
            raise LookupError(f"{self.id} on node {self.node} has no address for node {node}")
        return found


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
    device_ipc: whether engines offer shards on their node memory of their device.
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
    device_ipc: bool = True

    table: RoutingTable = field(init=False)
    cost: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.shards) != self.epoch.num_shards:
            raise ValueError(
                f"plan for {self.epoch.num_shards} shards, {len(self.shards)} are listed"
            )
        if len(set(map(attrgetter("id"), self.shards))) != len(self.shards):
            raise ValueError("two shards of a view have the same id")
        cost = cost_table(
            list(map(attrgetter("cost"), self.shards)),
            list(map(attrgetter("weight"), self.shards)),
        )
        cost.setflags(write=False)
        object.__setattr__(self, "table", routing_table(self.epoch))
        object.__setattr__(self, "cost", cost)

    def with_routers(self, routers: tuple[Peer, ...], version: ViewVersion) -> "MeshView":
        """The same mesh with other routers."""
        return replace(self, routers=routers, version=version)
