"""What the control plane knows: intent, which the journal keeps, and facts, which components tell.

Facts win for what is, intent wins for what should be; a new controller has the journal's intent and
asks for the facts. All values are immutable; `step` answers with a new `State`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.control.keys import NO_KEYS, Copies, Keys, PlacedKey
from orchestrator.control.lifecycle import Kind, Life, Phase, TransactionKind, Wanted
from orchestrator.control.settings import Settings
from placement.policy.load_model import LoadModel

NEVER = float("-inf")


class EpochId(NamedTuple):
    """Totally ordered. term: which controller, taken from the journal at its start."""

    term: int
    number: int

    def __str__(self) -> str:
        return f"{self.number} (term {self.term})"


class Order(NamedTuple):
    """Position of a command to a shard. A shard refuses commands older than the newest it saw, so
    late and doubled messages do nothing."""

    term: int
    number: int


NO_ORDER = Order(0, 0)


@dataclass(frozen=True, slots=True)
class Description:
    """What a component says of itself.

    incarnation: drawn by its process at start. revision: grows with every change in the process,
    so that of two descriptions the newer one is known. order: newest command it obeyed; failure:
    why that failed. capacity_bytes: for what it holds and loads; key_bytes: per kind of key.
    rate: relative speed; call_rows: what each call costs it on top, in rows; serving: False as long
    as it starts. origin: what its process was started with, empty where it does not say.
    """

    incarnation: int = 0
    revision: int = 0
    node: str = ""
    addresses: tuple[str, ...] = ()
    fingerprint: str = ""
    order: Order = NO_ORDER
    holdings: Keys = NO_KEYS
    loading: Keys = NO_KEYS
    failure: str = ""
    capacity_bytes: int = 0
    key_bytes: Mapping[str, int] = field(default_factory=dict)
    rate: float = 1.0
    call_rows: float = 0.0
    serving: bool = True
    origin: str = ""

    def bytes_of(self, keys: Keys) -> int:
        """Bytes that `keys` take on this shard."""
        if len(self.key_bytes) == 1:
            return len(keys) * next(iter(self.key_bytes.values()))
        return sum(self.key_bytes[key.kind] for key in keys)


UNKNOWN = Description()


# -- intent: what should be


@dataclass(frozen=True, slots=True)
class Place:
    """One place in a pool, whoever fills it.

    generation: counts the processes started for it, 0 before the first. restarts: deaths in a row.
    failed: why it was given up, empty otherwise. cordoned: gets no new copies.
    """

    id: str
    kind: Kind
    pool: str = ""
    generation: int = 0
    wanted: Wanted = Wanted.RUN
    restarts: int = 0
    failed: str = ""
    cordoned: bool = False
    spare: bool = False


class Stray(NamedTuple):
    """A process whose end was asked for and not confirmed, and whose place was filled again."""

    id: str
    kind: Kind
    generation: int


class Rule(NamedTuple):
    """Pools that alone may hold a key (none named: any), and pools that may not."""

    key: PlacedKey
    pinned: frozenset[str] = frozenset()
    banned: frozenset[str] = frozenset()

    def allows(self, pool: str) -> bool:
        return (not self.pinned or pool in self.pinned) and pool not in self.banned


@dataclass(frozen=True, slots=True)
class Rolling:
    """A rolling restart. current: the place whose process is replaced now, empty between two;
    generation: the one it had; left: places whose turn is to come."""

    target: str
    left: tuple[str, ...]
    current: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Epoch:
    """What dispatchers follow. incarnations: of the shards that hold what `copies` names and of the
    routers; weights:
    scale of each shard's speed, 0 for a suspect, 1 where not named."""

    id: EpochId
    copies: Copies
    incarnations: Mapping[str, int]
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """Copies added together, published, then copies dropped."""

    add: Copies
    drop: Copies
    predicted_s: float


@dataclass(frozen=True, slots=True)
class Transaction:
    """One change of placement. target: the placement it leads to, planned for `shards`; bytes: to
    load; gain: part of the experts' time it is predicted to save; why_back: why it is rolled back,
    or will be when its batch is committed."""

    id: int
    kind: TransactionKind
    phase: Phase
    batches: tuple[Batch, ...]
    target: Copies
    reason: str
    shards: frozenset[str] = frozenset()
    batch: int = 0
    bytes: int = 0
    gain: float = 0.0
    why_back: str = ""

    @property
    def current(self) -> Batch:
        return self.batches[self.batch]


@dataclass(frozen=True, slots=True)
class Intent:
    """What the journal keeps.

    directory: addresses that dispatchers follow the mesh at. keys: everything that must be placed.
    planned: the placement repairs lead back to, made for the shards `planned_for`. orders,
    transactions: last numbers given. cordoned_nodes: shards on them get no new copies. rules: at
    most one for a key.
    """

    term: int = 1
    fingerprint: str = ""
    directory: tuple[str, ...] = ()
    keys: Keys = NO_KEYS
    places: Mapping[str, Place] = field(default_factory=dict)
    planned: Copies = field(default_factory=dict)
    planned_for: frozenset[str] = frozenset()
    strays: frozenset[Stray] = frozenset()
    epoch: Epoch | None = None
    transaction: Transaction | None = None
    transactions: int = 0
    orders: int = 0
    cordoned_nodes: frozenset[str] = frozenset()
    rules: frozenset[Rule] = frozenset()
    rolling: Rolling | None = None


# -- facts: what is


@dataclass(frozen=True, slots=True)
class Command:
    """The last command sent to a shard."""

    order: Order
    step: str
    transaction: int
    keys: Keys
    sent_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Component:
    """The process in a place. Times are of the controller's own clock.

    adopting: an earlier controller started it. heard_s: last answer to a probe; answered_s: last
    answer that some dispatcher got. asked_s: when its start or end was last asked for. killing: it
    is not to finish what it has begun. weight: see `Epoch`. load_failures: prepares that failed.
    """

    generation: int
    life: Life
    since_s: float
    why: str = ""
    adopting: bool = False
    heard_s: float = NEVER
    answered_s: float = NEVER
    misses: int = 0
    said: Description = UNKNOWN
    weight: float = 1.0
    asked_s: float = NEVER
    ending_s: float | None = None
    ending_why: str = ""
    killing: bool = False
    restart_at_s: float = NEVER
    command: Command | None = None
    load_failures: int = 0


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """A follower of the epochs. adopted: what it follows now; None: nothing yet."""

    adopted: EpochId | None
    heard_s: float


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Signals of the engines' scaler: requests that wait in vLLM, to which the gateway hands all it
    lets in, and KV cache in use."""

    waiting: int = 0
    running: int = 0
    kv_used: float = 0.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What components, dispatchers and the runner said since this controller started."""

    started_s: float = 0.0
    components: Mapping[str, Component] = field(default_factory=dict)
    dispatchers: Mapping[str, Dispatcher] = field(default_factory=dict)
    published: EpochId | None = None
    publish_sent: EpochId | None = None
    publish_sent_s: float = NEVER
    phase_since_s: float = 0.0
    settled_s: float = NEVER
    """When the last transaction ended."""
    failures: int = 0
    """Transactions in a row that were rolled back."""
    not_before_s: float = NEVER
    """No repair begins earlier: the pause after one that failed."""
    domains: Mapping[str, str] = field(default_factory=dict)
    """Failure domain of each shard when it was last known that the plan suits them."""
    load: LoadModel = field(default_factory=LoadModel)
    rows: float = 0.0
    """Assignments per expert seen since the placement was last considered for its load."""
    planned_load: NDArray[np.float64] | None = None
    """[L, E] load the placement was last planned for."""
    considered_s: float = NEVER
    request: int = 0
    """Number of the plan request that is out, 0 for none."""
    request_sent_s: float = NEVER
    request_verb: str = ""
    """The verb that waits for that plan."""
    request_rules: frozenset[Rule] | None = None
    """Rules that it asks for; None: those in force."""
    rolling_since_s: float = NEVER
    """When the rolling restart last got on."""
    requests: int = 0
    busy: Mapping[str, float] = field(default_factory=dict)
    """Part of the last window each shard computed in."""
    engine_load: EngineLoad = EngineLoad()
    strays_asked_s: float = NEVER
    lost_nodes: frozenset[str] = frozenset()
    """Nodes on which everything is silent while others answer."""
    cut_off_since_s: float | None = None
    """Since when nothing on any other node answers; None: something does."""
    cut_off_until_s: float = NEVER
    """Silence before this may be the controller's own."""
    scaled_s: Mapping[str, float] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    """What cannot be put right now and why, by subject; for status."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything a decision may depend on."""

    settings: Settings = field(default_factory=Settings)
    intent: Intent = field(default_factory=Intent)
    facts: Facts = field(default_factory=Facts)
