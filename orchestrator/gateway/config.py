"""Configuration of the gateway."""

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.batch.settings import BatchSettings
from orchestrator.config.schema import LoggingConfig
from orchestrator.config.telemetry import TelemetryConfig


class GatewayConfig(BaseModel):
    """Where the gateway listens and what it lets through."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mesh: str = Field(min_length=1)
    """Name of the mesh: its Serve application is called after it."""
    model_name: str = Field(min_length=1)
    """Value of the `model_name` label of the gateway's metrics."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no TLS: put a proxy in front before opening this up."""
    port: int = Field(default=8000, ge=1, le=65535)
    route_prefix: str = "/"
    """Path that all routes lie below; two meshes on one Ray cluster need two of them."""
    max_queued_requests: int = Field(default=256, ge=0)
    """Requests that may wait on top of those the ready engines run at once; more get 429."""
    max_body_bytes: int = Field(default=16 << 20, ge=1)
    """Largest request body; a larger one gets 413."""
    body_timeout_s: float = Field(default=10.0, gt=0)
    """How long a client may take to send a body, plus a second for each 256 KiB of it; then 408."""
    send_timeout_s: float = Field(default=60.0, gt=0)
    """A client that takes nothing of its answer for so long is cut off."""
    engine_wait_s: float = Field(default=30.0, ge=0)
    """How long a request waits for an engine to be ready before it gets 503."""
    migration_limit: int = Field(default=3, ge=0)
    """How often one request may be continued by another engine."""
    traffic_kinds: tuple[str, ...] = ()
    """Kinds of traffic that are told apart; empty: the first that come."""
    key_names: dict[str, str] = {}
    """`batch.names` the other way around: the hex digits of keys' digests (`auth.digest`) first."""
    replicas: int = Field(default=1, ge=1)
    """Processes of the gateway."""
    retry_after_s: int = Field(default=1, ge=1)
    """`Retry-After` of a 429 or 503."""
    drain_timeout_s: float = Field(default=20.0, ge=0)
    """How long `remove_gateway` waits for running requests."""
    poll_interval_s: float = Field(default=0.5, gt=0)
    """How often the gateway asks the controller which engines there are."""
    controller_grace_s: float = Field(default=30.0, ge=0)
    """How long a silent controller's last word counts for `/health`; requests are served anyway."""
    controller_hung_s: float = Field(default=20.0, gt=0)
    """A controller that has answered nothing for so long is ended, so that Ray starts another."""
    logging: LoggingConfig = LoggingConfig()
    """Logs of the gateway's process."""
    telemetry: TelemetryConfig = TelemetryConfig()
    """What is observed how often, and where it is sent."""
    metrics_timeout_s: float = Field(default=5.0, gt=0)
    """An engine that takes longer to tell its metrics is left out of that scrape."""
    batch: BatchSettings | None = None
    """Files and batch jobs; without it there are no routes for them."""


def endpoint_url(host: str, port: int, route_prefix: str = "/") -> str:
    """URL to reach a gateway from its own machine, without a slash at its end."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"http://{place}{route_prefix.rstrip('/')}"
