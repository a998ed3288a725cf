"""The bodies of `/api/v1/`: what the mesh says of itself, as JSON.

Times are seconds before the answer (`..._ago_s`) or durations (`..._s`), never points in time: the
controller's clock is its own. Incarnations are hexadecimal texts, as JSON's numbers lose digits.
"""

from pydantic import BaseModel, ConfigDict, Field


class View(BaseModel):
    """Part of an answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EpochView(View):
    """Totally ordered: first by term, the controller's, then by number."""

    term: int
    number: int


class PlaceView(View):
    """One place in a pool and the process that fills it."""

    id: str
    kind: str
    pool: str
    node: str
    life: str
    """`starting`, `ready`, `suspect`, `draining`, `stopped`, `dead` or `failed`."""
    why: str
    """Why it is in this state."""
    generation: int
    """Processes started for this place so far."""
    restarts: int
    """Deaths in a row."""
    wanted: str
    """`run`, `stop` or `restart`."""
    cordoned: bool
    """It, or its node, gets no new copies."""
    spare: bool
    weight: float
    """Part of its speed that dispatchers count on; 0: suspected."""
    incarnation: str
    pid: int | None
    copies: int
    loading: int
    """Copies being loaded."""
    held_bytes: int
    capacity_bytes: int
    round_trip_us: float | None = None
    """Of the way to a shard from the dispatcher farthest away, as those measured it."""
    bytes_per_s: float | None = None
    """Of the slowest of these ways, there and back."""
    outdated: bool = False
    """Started with other code or another config than it would be now."""


class PoolView(View):
    """Places of one kind. least, most: how far its scaler may go; most 0: it is scaled by hand."""

    id: str
    kind: str
    size: int
    """Places that are to run."""
    ready: int
    least: int
    most: int


class NodeView(View):
    """A node that components are on."""

    name: str
    components: list[str]
    cordoned: bool
    round_trip_us: float | None = None
    """The longest of its shards."""
    bytes_per_s: float | None = None
    """The lowest of its shards."""


class TransactionView(View):
    """The change of placement under way."""

    id: int
    kind: str
    phase: str
    batch: int
    """Counts from 1."""
    batches: int
    copies: int
    """Copies that it loads in all."""
    bytes: int
    gain: float
    """Part of the experts' time that it is predicted to save."""
    reason: str
    why_back: str
    """Why it is rolled back; empty if it is not."""
    phase_s: float
    """How long it has been in this phase."""


class PlanningView(View):
    """A plan that was asked for and is being made."""

    request: int
    asked_ago_s: float
    by_person: bool


class RollingView(View):
    """A rolling restart under way."""

    target: str
    current: str
    left: list[str]


class RuleView(View):
    """Where copies of an expert may be."""

    expert: str
    pinned: list[str]
    """Pools that alone may hold it; empty: any."""
    banned: list[str]
    """Pools that may not."""


class DurationsView(View):
    """counts: of durations up to each of `actors.dispatch.report.BOUNDS_S`, and of longer ones."""

    counts: list[int]
    sum_s: float


class ShardSeenView(View):
    """A shard as a dispatcher sees it."""

    id: str
    scale: float
    """Time that its kernel takes over what its measured cost predicts, lately."""
    is_late: bool
    """It owes an answer beyond its soft deadline and gets no rows."""
    late: int
    refused: int
    lost: int


class DispatchView(View):
    """What a dispatcher did since it began. shards: those that were late, refused, were lost, or
    take much longer than predicted."""

    told_ago_s: float
    calls: int
    starved: int
    """Calls that waited because nobody could take some rows."""
    resent: int
    """Parts of calls that went to another shard too."""
    failed: int
    sent: DurationsView
    """To split and post a call."""
    waited: DurationsView
    """Until a call's answers were added up, from when they were asked for."""
    served: DurationsView
    """That the slowest of a call's shards computed for."""
    shards: list[ShardSeenView]


class DispatcherView(View):
    """One that follows the epochs. adopted: what it follows; None: nothing yet. did: None before
    its first report."""

    id: str
    adopted: EpochView | None
    heard_ago_s: float
    did: DispatchView | None = None


class ClusterView(View):
    """Everything the control plane knows, at one moment."""

    mesh: str = ""
    model: str = ""
    term: int
    epoch: EpochView | None
    followed: bool
    """Every dispatcher follows that epoch."""
    settled: bool = False
    """Nothing moves, starts, ends or is missing, and all that is planned is there."""
    recovering: bool
    """A new controller still waits for components to describe themselves."""
    refuses: str = ""
    """Why no change can be made now (the journal cannot be written); empty if it can."""
    places: list[PlaceView]
    pools: list[PoolView]
    nodes: list[NodeView]
    transaction: TransactionView | None
    transactions: int
    """Number of the last one."""
    planning: PlanningView | None
    rolling: RollingView | None
    rules: list[RuleView]
    problems: dict[str, str]
    """What cannot be put right now and why, by subject."""
    dispatchers: list[DispatcherView]


class LossView(View):
    """What would have no copy left if something were lost. some: the first few names."""

    experts: int
    some: list[str] = Field(default_factory=list)


class PlacementView(View):
    """Which shard holds which expert, and what a loss would cost."""

    epoch: EpochView | None
    layers: list[int]
    experts: int
    """Of each layer."""
    shards: dict[str, dict[int, list[int]]]
    """Shard -> layer -> experts it serves, ascending."""
    copies: dict[int, list[int]]
    """Layer -> copies of each expert."""
    least_copies: int
    loss_of_shard: dict[str, LossView]
    loss_of_node: dict[str, LossView]
    loss_of_pool: dict[str, LossView]
    survives_any_shard: bool
    survives_any_node: bool


class EventView(View):
    """One line of the mesh's history. wall_s: Unix time, for people."""

    number: int
    wall_s: float
    subject: str
    step: str
    transaction: int
    """0 outside of one."""
    reason: str
    figures: dict[str, float] = Field(default_factory=dict)


class VerbAnswer(View):
    """What came of a verb that was not refused."""

    verb: str
    text: str
    dry_run: bool
