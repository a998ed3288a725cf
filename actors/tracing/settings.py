"""Where a process sends the spans of sampled steps."""

import json
import os
from dataclasses import asdict, dataclass

SPANS_VARIABLE = "EXPERTMESH_STEP_SPANS"
"""`SpanSettings` as JSON, for the processes of an engine; unset: no step is sampled."""


@dataclass(frozen=True, slots=True)
class SpanSettings:
    """endpoint: of the collector, as the exporter wants it (over HTTP with its path); protocol:
    "grpc" or "http". service, component: who makes the spans. step_ratio: part of an engine's steps
    that is sampled; who only serves such steps does not look at it.
    """

    endpoint: str
    protocol: str
    mesh: str
    service: str
    component: str
    step_ratio: float

    def variables(self) -> dict[str, str]:
        """Environment of a process that is to read them."""
        return {SPANS_VARIABLE: json.dumps(asdict(self))}


def settings_of_process() -> SpanSettings | None:
    """From the environment; None where no step is sampled."""
    text = os.environ.get(SPANS_VARIABLE)
    return SpanSettings(**json.loads(text)) if text else None
