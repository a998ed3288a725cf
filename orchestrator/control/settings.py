"""Limits of the control plane's decisions, in one place."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How far a pool of shards, or the engines, may be scaled. most = 0: as many as asked for."""

    least: int = 1
    most: int = 0
    cooldown_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator may set; every field is a limit that some decision's reason names."""

    misses_to_suspect: int = 3
    """Probes without an answer in a row before a component is suspected; at least 2."""
    misses_of_lost_node: int = 3
    """The same for everything on a node at once, after which the node is lost."""
    node_unheard_s: float = 3.0
    """No client had an answer from a lost node for so long; they report every two seconds."""
    cut_off_limit_s: float = 60.0
    """How long nobody is declared dead while nothing on any other node answers; Ray takes half as
    long to tell which nodes are gone."""
    controller_node: str = ""
    """Where the controller runs: what answers there says nothing of the network."""
    suspect_limit_s: float = 10.0
    """How long a component may be suspected before it is replaced."""
    client_fresh_s: float = 5.0
    """A shard that answered some dispatcher this recently lives, whatever probes say."""
    start_timeout_s: float = 300.0
    """How long a shard or router may take to start."""
    engine_start_timeout_s: float = 600.0
    """How long an engine may take to start."""
    kill_timeout_s: float = 10.0
    """How long the end of a killed process may go unconfirmed before its place is filled again."""
    drain_timeout_s: float = 30.0
    """How long a component that was asked to end may take to finish what it has begun."""
    rolling_limit_s: float = 900.0
    """How long one component of a rolling restart may take before the rest is left alone."""
    retry_s: float = 3.0
    """Pause before an action without any sign of success is sent again, under the same id."""
    restart_budget: int = 5
    """Deaths in a row, each before `stable_s` of service, after which a place is given up."""
    restart_pause_s: float = 1.0
    """Pause before the second restart in a row; doubles with each; the first has none."""
    longest_pause_s: float = 60.0
    """Longest pause between restarts, and between repairs that fail."""
    stable_s: float = 300.0
    """Service after which earlier deaths no longer count."""
    recovery_s: float = 15.0
    """How long a new controller waits for components to describe themselves before it repairs."""
    min_copies: int = 1
    """Shards every key must live on."""
    most_redundant: int | None = None
    """Copies of a layer beyond those at most; None: as many as fit."""
    load_bytes_per_s: float = 200e6
    """What a shard is predicted to load; and the budget it is given for loading."""
    phase_factor: float = 3.0
    phase_extra_s: float = 5.0
    """A phase may take `phase_factor` times its prediction and `phase_extra_s` on top."""
    repair_adoption_s: float = 1.0
    """How long a repair waits for dispatchers to follow before it goes on without them."""
    consider_s: float = 5.0
    """Pause between two considerations of the load."""
    rebalance_cooldown_s: float = 30.0
    """Pause after a transaction before the load alone may start another."""
    least_rows: float = 16.0
    """Assignments per expert, seen since the last plan, before the load says anything."""
    least_gain: float = 0.02
    """Part of the experts' time a rebalance must save."""
    payback_s: float = 300.0
    """A rebalance must save more expert time within this than loading its copies takes."""
    weight_step: float = 0.15
    """Change of a shard's weight, as a part of it, that is worth telling the dispatchers."""
    shard_pools: dict[str, PoolLimits] = field(default_factory=dict)
    domains: dict[str, str] = field(default_factory=dict)
    """Failure domain of the shards of a pool; of a pool that names none, the node of each. Where no
    pool names one, every shard is on its own."""
    engines: PoolLimits = PoolLimits()
    origins: dict[str, str] = field(default_factory=dict)
    """By pool: what a process that starts now is started with, see `Description.origin`."""
