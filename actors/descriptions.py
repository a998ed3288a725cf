"""What the processes of a mesh say of themselves, whoever asks and however often."""

from dataclasses import dataclass

from actors.engine_lifecycle import EngineState
from actors.origin import UNKNOWN_ORIGIN, Origin
from placement.cost_model import DeviceCost

EXPERT = "expert"
"""The kind of all that shards hold today."""

Key = tuple[str, int, int]
"""kind, group, number: ("expert", layer, expert)."""

Order = tuple[int, int]
"""(term of the controller, number) of a command."""

NO_ORDER: Order = (0, 0)


@dataclass(frozen=True, slots=True)
class Held:
    """What a shard holds at one moment. revision grows with every change; order: of the newest
    command; failure: why it ended early."""

    revision: int
    order: Order
    holdings: frozenset[Key]
    loading: frozenset[Key]
    failure: str


@dataclass(frozen=True, slots=True)
class ShardDescription:
    """incarnation: of this process, what its links' WELCOME says. fingerprint: of the checkpoint.

    free_bytes: memory for weights that the device had before any was loaded. cost: of its calls,
    None before it was measured. held: what it holds and loads, and the newest command it obeyed.
    detail: its kernel, for people. memory_bytes: of the weights held. busy_s: time its kernel
    computed since the start. variant: fingerprint of the checkpoint that stands in for that one.
    origin: what its process was started with.
    """

    incarnation: int
    pid: int
    node: str
    addresses: tuple[str, ...]
    fingerprint: str
    kernel: str
    bytes_per_expert: int
    free_bytes: int
    cost: DeviceCost | None
    held: Held
    detail: str
    memory_bytes: int
    calls: int
    failed_calls: int
    busy_s: float
    variant: str = ""
    origin: Origin = UNKNOWN_ORIGIN


@dataclass(frozen=True, slots=True)
class RouterDescription:
    """incarnation: what its links' WELCOME says. epoch: number of the plan epoch it follows."""

    incarnation: int
    pid: int
    node: str
    addresses: tuple[str, ...]
    epoch: int
    calls: int
    origin: Origin = UNKNOWN_ORIGIN


@dataclass(frozen=True, slots=True)
class EngineDescription:
    """incarnation: drawn when its process started. memory_bytes: of its parameters, None where they
    were not counted. in_flight: requests it was handed; running, waiting: what vLLM's scheduler
    makes of them; kv_used: part of the KV cache in use; prompted, generated: tokens since its
    start.
    """

    incarnation: int
    pid: int
    node: str
    state: EngineState
    detail: str
    memory_bytes: int | None
    in_flight: int
    max_running: int
    running: int = 0
    waiting: int = 0
    kv_used: float = 0.0
    prompted: int = 0
    generated: int = 0
    origin: Origin = UNKNOWN_ORIGIN


Said = ShardDescription | RouterDescription | EngineDescription
