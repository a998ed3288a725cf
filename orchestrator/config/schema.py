"""The whole config of a mesh: what the YAML file may say.

Sections live in `serving.py` (model, engines, router, gateway) and `pools.py` (pools, placement);
the docstring under a field is its documentation (`docs/configuration.md` is made from them).
Secrets are not in here: see `secrets.py`.
"""

import difflib
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, field_validator

from actors.wire.ports import parse_ports
from orchestrator.config.batch import BatchConfig
from orchestrator.config.fields import ByteSize, ConfigPath, Count, DnsName, Seconds, Section
from orchestrator.config.kubernetes import ENGINE_GROUP, HEAD_GROUP, KubernetesConfig
from orchestrator.config.pools import PlacementConfig, PoolConfig, check_speeds
from orchestrator.config.serving import EnginesConfig, GatewayConfig, ModelConfig, RouterConfig
from orchestrator.config.telemetry import TelemetryConfig


class MeshSection(Section):
    """The mesh itself."""

    name: DnsName = "demo"
    """Name of the mesh, part of every component's name: lower case letters, digits and hyphens."""


def check_ports(text: str) -> str:
    parse_ports(text)
    return text


class ClusterConfig(Section):
    """The Ray cluster the mesh runs on."""

    ray_address: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Ray cluster to join: `auto`, or `host:port`; unset: a private one for this mesh alone."""
    temp_dir: ConfigPath | None = None
    """Folder of the private Ray session's sockets and logs; unset: one of its own under the
    system's temporary folder."""
    state_dir: ConfigPath | None = None
    """Folder of what outlives a mesh's processes, such as the controller's journal, on the head
    node; unset: `expertmesh` below `$XDG_STATE_HOME` or `~/.local/state`."""
    ports: Annotated[str, AfterValidator(check_ports)] | None = None
    """TCP ports that the mesh's own processes listen on for other nodes, such as `21000-21099`, for
    firewalls and network policies: one for each shard and router of a node, and one for the
    controller; unset: free ones."""
    head_host: Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")] | None = None
    """Name under which other nodes reach the cluster's head node, also when another machine takes
    its place; unset: its address."""
    take_over: bool = False
    """A mesh of this name that runs in the joined cluster, since the command that started it was
    killed, is gone on with as it is, and ended with the new command; otherwise it is refused."""
    room_timeout_s: Seconds = 8.0
    """How long shards and engines may wait for nodes that have what they ask for, in a cluster that
    is joined; give it longer where an autoscaler adds nodes."""


class ControllerConfig(Section):
    """Limits of the controller's decisions."""

    shard_start_timeout_s: Seconds = 300.0
    """How long a shard may take to start and load its experts."""
    engine_start_timeout_s: Seconds = 600.0
    """How long an engine may take to load the model."""
    call_timeout_s: Seconds = 10.0
    """How long a control call to a component may take."""
    probe_interval_s: Seconds = 1.0
    """Time between two looks at every component."""
    suspect_after_probes: Count = 5
    """A ready component that gave no answer to so many looks in a row is `suspect` until it answers
    again: it counts as missing, and engines get no new requests meanwhile."""
    node_lost_after_probes: Count = 3
    """Where everything on a node, two components at least, gave no answer to so many looks in a
    row, and something on another node does, the experts that are only there are loaded elsewhere
    without waiting for `replace_after_s`."""
    replace_after_s: Seconds = 10.0
    """How long a component may be suspect before it is ended and replaced; a shard that dispatchers
    still get answers from is not."""
    restart_budget: Count = 5
    """Deaths in a row after which a component is given up until `expertmesh restart` is asked for.
    The pauses between restarts grow; five minutes of service clear the count."""
    load_bandwidth: Annotated[ByteSize, Field(gt=0)] = 200_000_000
    """Bytes a second at which a shard loads experts while it serves, such as `200MB`; what changes
    of the placement are predicted to take follows from it."""
    rebalance_pause_s: Seconds = 30.0
    """Shortest time between two changes of the placement that the load alone asks for."""
    rebalance_gain: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Part of the experts' time that such a change must save; 0.02 is 2 %."""
    drain_timeout_s: Seconds = 30.0
    """How long requests under way may take to finish when the mesh, or an engine, stops."""


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class LoggingConfig(Section):
    """Logs of every component."""

    level: LogLevel = LogLevel.INFO
    """`debug`, `info`, `warning` or `error`."""
    format: LogFormat = LogFormat.TEXT
    """`text`: lines for people; `json`: one object a line."""


class MeshConfig(Section):
    """One mesh: a model, engines, pools of expert shards, and the endpoint in front."""

    mesh: MeshSection = MeshSection()
    model: ModelConfig
    engines: EnginesConfig = EnginesConfig()
    router: RouterConfig = RouterConfig()
    pools: Annotated[dict[DnsName, PoolConfig], Field(min_length=1), AfterValidator(check_speeds)]
    placement: PlacementConfig = PlacementConfig()
    gateway: GatewayConfig = GatewayConfig()
    batch: BatchConfig = BatchConfig()
    cluster: ClusterConfig = ClusterConfig()
    controller: ControllerConfig = ControllerConfig()
    logging: LoggingConfig = LoggingConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()

    @field_validator("kubernetes", mode="after")
    @classmethod
    def _pods_are_of_pools(cls, value: KubernetesConfig, info: ValidationInfo) -> KubernetesConfig:
        known = [*info.data.get("pools", {}), ENGINE_GROUP, HEAD_GROUP]
        for name in value.pods:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise ValueError(f"pods.{name} is no pool of this mesh: {hint}")
        return value

    @property
    def num_shards(self) -> int:
        """Shards of all pools."""
        return sum(pool.shards for pool in self.pools.values())

    def with_endpoint(self, host: str | None, port: int | None) -> "MeshConfig":
        """The same config listening elsewhere; None keeps what it says."""
        given = {"host": host, "port": port}
        gateway = self.gateway.model_dump() | {k: v for k, v in given.items() if v is not None}
        return self.model_copy(update={"gateway": GatewayConfig.model_validate(gateway)})
