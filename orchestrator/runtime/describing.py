"""From what processes say to what the control plane's core knows of them."""

from collections.abc import Iterable

from actors.descriptions import EngineDescription, RouterDescription, Said, ShardDescription
from actors.experts.spec import ExpertSpec
from orchestrator.capacity import ShardMemory, memory_of_shards
from orchestrator.config.pools import PoolConfig
from orchestrator.control.keys import EXPERT, Keys, PlacedKey
from orchestrator.control.state import Description, Order
from orchestrator.mesh_plan import REFERENCE_TOKENS
from placement.cost_model import TYPICAL_COST, DeviceCost, WayCost, expected_reads, over_way


class Describer:
    """Remembers the last conversion of each process: what a shard holds seldom changes."""

    def __init__(self, spec: ExpertSpec) -> None:
        self._spec = spec
        self._reads = expected_reads(spec.num_experts, REFERENCE_TOKENS * spec.top_k)
        self._keys: dict[int, tuple[int, Keys, Keys]] = {}

    def shard(
        self,
        said: ShardDescription,
        pool: PoolConfig,
        memory_bytes: int,
        way: WayCost | None = None,
        shards: int = 1,
    ) -> Description:
        """memory_bytes: what it may fill, see `memory_of_shard`. way: to it, where it was measured
        and counts. shards: how many the mesh has, over which a row's experts are spread."""
        cost = cost_of(said, pool)
        if way is not None:
            rows = expected_reads(shards, self._spec.top_k)
            cost = over_way(cost, way, _row_bytes(self._spec.hidden_size), rows)
        row_s = self._row_s(cost)
        held, loading = self._keys_of(said)
        return Description(
            incarnation=said.incarnation,
            revision=said.held.revision,
            node=said.node,
            addresses=said.addresses,
            fingerprint=said.fingerprint,
            order=Order(*said.held.order),
            holdings=held,
            loading=loading,
            failure=said.held.failure,
            capacity_bytes=memory_bytes,
            key_bytes={EXPERT: said.bytes_per_expert},
            rate=self._row_s(TYPICAL_COST) / row_s,
            call_rows=cost.call_s / row_s,
            origin=str(said.origin),
        )

    def _row_s(self, cost: DeviceCost) -> float:
        """Seconds for each row of a usual call, the reading of weights shared out."""
        return cost.row_s + self._reads * cost.read_s

    def _keys_of(self, said: ShardDescription) -> tuple[Keys, Keys]:
        known = self._keys.get(said.incarnation)
        if known is None or known[0] != said.held.revision:
            held, loading = (_placed(keys) for keys in (said.held.holdings, said.held.loading))
            known = self._keys[said.incarnation] = (said.held.revision, held, loading)
        return known[1], known[2]


def _placed(keys: Iterable[tuple[str, int, int]]) -> Keys:
    return frozenset(PlacedKey(*key) for key in keys)


def _row_bytes(hidden: int) -> int:
    """Of a row in bf16 and its sum in fp32."""
    return 2 * hidden + 4 * hidden


def describe_other(said: RouterDescription | EngineDescription) -> Description:
    """A process without experts."""
    addresses = said.addresses if isinstance(said, RouterDescription) else ()
    return Description(
        incarnation=said.incarnation,
        node=said.node,
        addresses=addresses,
        origin=str(said.origin),
    )


def cost_of(said: ShardDescription, pool: PoolConfig) -> DeviceCost:
    """Of the shard's calls: as the config says, or as measured."""
    if pool.speed is not None:
        return TYPICAL_COST.scaled(pool.speed)
    return said.cost or TYPICAL_COST


def memory_of_shard(
    said: ShardDescription, pool: PoolConfig, others: Iterable[tuple[ShardDescription, PoolConfig]]
) -> int:
    """Bytes the shard may fill with experts. others: the mesh's other shards."""
    shards = [_memory(said, pool), *(_memory(*other) for other in others)]
    return memory_of_shards(shards)[0]


def _memory(said: Said, pool: PoolConfig) -> ShardMemory:
    assert isinstance(said, ShardDescription)
    return ShardMemory(said.node, pool.device == "cpu", said.free_bytes, pool.memory)
