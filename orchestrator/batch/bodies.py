"""Bodies of a job's requests, as engines are sent them."""

import json
from pathlib import Path

from orchestrator.batch.records import Leased

PRIORITY = 100
"""vLLM's priority of a batch request. Online requests have 0, and lower comes first."""
OWNED_FIELDS = ("priority", "stream", "stream_options")
"""Fields of a body that the runner sets or leaves out, whatever the client says."""


def read_bodies(path: Path, leased: list[Leased]) -> list[bytes]:
    """What the engine is sent for each request: the line's body, with our priority in it."""
    bodies = []
    with path.open("rb") as file:
        for request in leased:
            file.seek(request.offset)
            body = json.loads(file.read(request.length))["body"]
            for field in OWNED_FIELDS:
                body.pop(field, None)
            bodies.append(json.dumps(body | {"priority": PRIORITY}).encode())
    return bodies
