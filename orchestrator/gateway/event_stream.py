"""The mesh's history as server-sent events: what was, then what comes."""

import asyncio
import time
from collections.abc import AsyncIterator

from orchestrator.api.models import EventView
from orchestrator.clients.mesh import MeshClient, MeshLostError
from orchestrator.gateway.last_known import ASK_TIMEOUT_S

POLL_S = 0.25
PAGE = 500
KEEPALIVE_S = 10.0
"""A comment is sent so often, so that neither side takes the connection for dead."""

SILENCE_S = 15.0
"""The stream ends when the controller has been silent for so long; a client comes again with
`Last-Event-ID`."""


def as_event(event: EventView) -> bytes:
    return f"id: {event.number}\nevent: {event.step}\ndata: {event.model_dump_json()}\n\n".encode()


async def follow(mesh: MeshClient, after: int) -> AsyncIterator[bytes]:
    """Events after number `after` (negative: the last `-after`), then each as it is written."""
    heard_s = sent_s = time.monotonic()
    yield b": events of the mesh\n\n"
    while True:
        now_s = time.monotonic()
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                events = await mesh.history(after, PAGE)
            heard_s = now_s
        except (MeshLostError, TimeoutError):
            events = []
            if now_s - heard_s > SILENCE_S:
                return
        if events:
            after = events[-1].number
            yield b"".join(map(as_event, events))
            sent_s = now_s
        elif after < 0:
            after = 0  # nothing was written yet
        elif now_s - sent_s > KEEPALIVE_S:
            yield b": nothing new\n\n"
            sent_s = now_s
        await asyncio.sleep(POLL_S)
