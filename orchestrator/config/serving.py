"""The serving half of the config: model, engines, router and gateway."""

import contextlib
import json
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, field_validator, model_validator

from actors.traffic import MAX_KINDS, NAME
from actors.wire.security import Protection
from orchestrator.config.fields import ByteSize, ConfigPath, Count, PositiveFloat, Seconds, Section

OWNED_VLLM_FLAGS = {
    "model": "model.path",
    "served_model_name": "model.served_name",
    "max_model_len": "model.max_model_len",
    "load_format": "nothing: engines load with the mesh's own loader",
    "host": "gateway.host",
    "port": "gateway.port",
    "api_key": "the environment variable EXPERTMESH_API_KEYS",
    "data_parallel_size": "engines.replicas",
    "enable_expert_parallel": "pools",
    "enable_eplb": "placement.redundant_slots",
    "scheduling_policy": "nothing: batch jobs come after online requests by vLLM's priorities",
}
"""vLLM flags the mesh sets itself, and the key that says it here."""


class ModelConfig(Section):
    """The checkpoint to serve."""

    path: ConfigPath
    """Folder of the checkpoint (`config.json`, safetensors, tokenizer)."""
    served_name: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Model name clients ask for; unset: the folder's name."""
    max_model_len: Count | None = None
    """Longest prompt plus answer, in tokens; unset: what the checkpoint says."""

    @property
    def name(self) -> str:
        """Name clients ask for."""
        return self.served_name or self.path.name


class EnginesConfig(Section):
    """vLLM engines: attention, KV cache, scheduling and sampling, without routed experts."""

    replicas: Count = 1
    """Number of engines, each with its own KV cache."""
    max_replicas: Annotated[int, Field(ge=0)] = 0
    """Where greater than `replicas`, engines are added up to so many while requests wait or the KV
    caches are full, and go again when they are idle; 0: their number stays."""
    threads: Count | None = None
    """CPU threads of one engine's kernels; unset: an engine's share of the cores that the shards'
    threads leave, or 2 where that is less and its share of the machine is 2 cores (1 in a shared
    Ray cluster)."""
    kv_cache_gib: Count = 1
    """KV cache of one engine on a CPU, in whole GiB (vLLM takes no fractions); on GPUs set vLLM's
    `gpu_memory_utilization` below."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Ray resources each engine asks for besides CPUs, which also choose its node: `GPU: 1`, or a
    custom one."""
    vllm: dict[str, JsonValue] = Field(default_factory=dict)
    """More engine flags, under vLLM's own names: `max_num_seqs: 16`."""

    @property
    def predicts(self) -> bool:
        """Whether engines draft tokens with the model's layers of multi-token prediction."""
        speculative = self.vllm.get("speculative_config")
        if isinstance(speculative, str):  # as on vLLM's command line
            with contextlib.suppress(ValueError):
                speculative = json.loads(speculative)
        method = speculative.get("method") if isinstance(speculative, dict) else None
        return str(method).endswith("mtp")

    @field_validator("vllm", mode="after")
    @classmethod
    def _normalize_flags(cls, flags: dict[str, JsonValue]) -> dict[str, JsonValue]:
        flags = {flag.lstrip("-").replace("-", "_"): value for flag, value in flags.items()}
        for flag in flags:
            if flag in OWNED_VLLM_FLAGS:
                raise ValueError(f"{flag} is set by the mesh: use {OWNED_VLLM_FLAGS[flag]}")
        return flags


class RouterMode(StrEnum):
    """Where the dispatcher of an engine runs."""

    EMBEDDED = "embedded"
    ACTOR = "actor"


class RowsBetweenNodes(StrEnum):
    """How tokens' rows travel to shards on other nodes."""

    BF16 = "bf16"
    FP8 = "fp8"


class DeviceIpc(StrEnum):
    """Whether rows may stay on devices between an engine and shards on its node."""

    AUTO = "auto"
    OFF = "off"


class RouterConfig(Section):
    """Token dispatch between engines and shards."""

    mode: RouterMode = RouterMode.EMBEDDED
    """`embedded`: in the engine's process; `actor`: a process of its own on the engine's node."""
    soft_deadline_s: Seconds = 0.25
    """Longest wait for a shard before its rows are sent to another replica too, whose answer is
    taken if it comes first. What the shard's measured speed allows for, if that is less."""
    call_deadline_s: Seconds = 10.0
    """A shard that has not answered an expert call by then owes its rows to other replicas."""
    expert_wait_s: Seconds = 60.0
    """How long a request waits for an expert that no living shard holds, before it fails."""
    spin_us: Annotated[float, Field(ge=0, le=100_000, allow_inf_nan=False)] | None = None
    """How long engines and shards watch for each other's next message before they sleep, in
    microseconds; waits that took longer than this are not watched. Unset: 5000, longer than a shard
    mostly computes for, where all of their threads have a core to themselves, and 50 elsewhere."""
    rows_between_nodes: RowsBetweenNodes = RowsBetweenNodes.BF16
    """`fp8`: rows to shards on other nodes take one byte for each value and answers two, half the
    traffic of `bf16`; answers then differ a little (docs/performance.md)."""
    device_ipc: DeviceIpc = DeviceIpc.AUTO
    """`auto`: rows between an engine and shards on its node stay in memory of their devices where
    both are of one vendor and its driver can share it, at 48 MiB of the engine's device for each
    shard (docs/hardware.md); with `mode: embedded` only. `off`: all rows go through the host. In a
    mesh that runs `off` concerns the next call, and the memory is given back with its link; `auto`
    concerns links that are opened afterwards."""
    between_nodes_security: Protection = Protection.AUTHENTICATED
    """What protects the mesh's own connections between nodes (docs/security.md). `authenticated`:
    whatever was changed, repeated or made up on its way ends the connection; it can be read.
    `encrypted`: TLS 1.3. `none`: only the handshake proves anything, for networks that nobody else
    is on."""
    tls_certificate: ConfigPath | None = None
    """PEM file with the certificate for `encrypted`, at this path on every node; left out, each
    process makes its own. Clients check that who shows it knows the mesh's secret, not who signed
    it."""
    tls_key: ConfigPath | None = None
    """PEM file with the certificate's key; may be left out where the certificate's file has it."""

    @model_validator(mode="after")
    def _certificates_are_for_tls(self) -> Self:
        given = self.tls_certificate is not None or self.tls_key is not None
        if given and self.between_nodes_security is not Protection.ENCRYPTED:
            raise ValueError("tls_certificate and tls_key need between_nodes_security: encrypted")
        if self.tls_key is not None and self.tls_certificate is None:
            raise ValueError("tls_key needs tls_certificate")
        return self


HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$")]


KindName = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]


class GatewayConfig(Section):
    """The OpenAI-compatible HTTP endpoint."""

    host: Annotated[str, StringConstraints(min_length=1)] = "127.0.0.1"
    """Address to listen on; `0.0.0.0` opens it to the network (then set API keys)."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """TCP port; 0 takes a free one."""
    route_prefix: Annotated[str, StringConstraints(pattern=r"^/([\w.~-]+(/[\w.~-]+)*)?$")] = "/"
    """Path that the endpoint's routes lie below, such as `/demo` for `/demo/v1/completions`. Meshes
    on one Ray cluster share an address, and each needs a prefix of its own."""
    max_queued_requests: Annotated[int, Field(ge=0)] = 256
    """Requests that may wait on top of those the engines run at once; one more gets status 429
    with Retry-After."""
    max_request_body: Annotated[ByteSize, Field(gt=0)] = 16 * 2**20
    """Largest request body, in bytes or such as `16MiB`; a larger one gets status 413."""
    body_timeout_s: Seconds = 10.0
    """How long a client may take to send a request's body, plus one second for every 256 KiB that
    have arrived; then it gets status 408. Until its body is there a request takes no place in the
    queue."""
    send_timeout_s: Seconds = 60.0
    """A client that takes nothing of its answer for so long is cut off, and its request aborted."""
    replicas: Count = 1
    """Processes that serve the endpoint behind Ray Serve's proxy. They share no state: each counts
    its own requests against `max_queued_requests`."""
    engine_wait_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 30.0
    """How long a request waits for an engine while none is ready, new ones and those that lost
    theirs; then status 503. Those that wait count for `max_queued_requests`."""
    migration_limit: Annotated[int, Field(ge=0)] = 3
    """How often another engine may continue one request whose engine was lost."""
    traffic_kinds: Annotated[list[KindName], Field(max_length=MAX_KINDS)] = Field(
        default_factory=list
    )
    """Kinds of traffic whose load on the experts is kept apart: names that requests have in their
    header `X-ExpertMesh-Traffic`, batch jobs in their metadata's `traffic`, or API keys in
    `batch.names` (docs/observability.md). What has another name is `other`. Empty: the first eight
    that come."""
    media: Literal["none", "data"] | list[HostName] = "data"
    """Images, audio and video of requests to models that take them. `none`: refused. `data`: only
    as `data:` URLs. Host names, `[images.example.com]`: these are fetched from as well, over HTTP
    or HTTPS, redirects between them too, but never from addresses of this machine or of private
    networks, whatever a name resolves to."""

    @property
    def media_policy(self) -> str:
        """`media` as engines are told (`actors.engine.media_policy`)."""
        return self.media if isinstance(self.media, str) else ",".join(self.media)

    @field_validator("media", mode="after")
    @classmethod
    def _some_host(cls, media: str | list[str]) -> str | list[str]:
        if not media:
            raise ValueError("name hosts, or say none or data")
        return media
