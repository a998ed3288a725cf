"""Serve whole batches on behalf of engines: ROUTE frames in, ROUTED frames out.

The router of `router.mode: actor`: it holds the plan and the links to the shards, so engines hold
neither. No Ray here; `router.py` puts this into an actor.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from actors.dispatch.backend import ExpertBackend, bf16_bits, bf16_tensor
from actors.wire.address import Address
from actors.wire.body import route_body, rows_of
from actors.wire.frame import Fault, FrameKind, Header, body_bytes
from actors.wire.link import CALLS_IN_FLIGHT
from actors.wire.security import HANDSHAKE_ONLY, TcpSecurity
from actors.wire.server import FrameServer, Request

log = logging.getLogger(__name__)


class RouterServer:
    """Answers ROUTE frames from a backend."""

    def __init__(
        self,
        backend: ExpertBackend,
        addresses: Sequence[Address],
        secret: bytes,
        security: TcpSecurity = HANDSHAKE_ONLY,
    ) -> None:
        self._backend = backend
        self._frames = FrameServer(addresses, secret, self._handle, security)
        self.addresses = self._frames.addresses
        self.incarnation = self._frames.incarnation
        self.calls = 0

    def run(self) -> None:
        """Serve until `stop`; blocks its thread."""
        self._frames.run()

    def stop(self) -> None:
        self._frames.stop()

    def _handle(self, requests: Sequence[Request]) -> None:
        """Send what came together, then wait: the shards work for several engines at once."""
        for first in range(0, len(requests), CALLS_IN_FLIGHT):
            sent = []
            for request in self._frames.present(requests[first : first + CALLS_IN_FLIGHT]):
                with self._refusing(request):
                    sent.append((request, self._send(request)))
            for request, call in sent:
                with self._refusing(request):
                    self._answer(request, self._backend.wait(call))

    @contextlib.contextmanager
    def _refusing(self, request: Request) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, LookupError, ValueError) as error:
            log.warning("layer %d: %s", request.header.layer, error)
            self._frames.refuse(request, str(error), Fault.FAILED)

    def _send(self, request: Request) -> Any:
        header = request.header
        if header.kind is not FrameKind.ROUTE or (header.rows and header.assignments % header.rows):
            raise ValueError(f"a router serves well-formed ROUTE frames, not {header}")
        body = route_body(header, request.body)
        return self._backend.send(
            header.layer,
            bf16_tensor(body.rows),
            torch.from_numpy(body.topk_weights),
            torch.from_numpy(body.topk_ids),
            header.sample,
        )

    def _answer(self, request: Request, result: torch.Tensor) -> None:
        header = request.header
        self.calls += 1
        length = body_bytes(FrameKind.ROUTED, header.rows, header.hidden)
        room = self._frames.room(request, length)
        if room is None:
            return
        rows_of(room, header.rows, header.hidden)[:] = bf16_bits(result)
        answer = Header(
            FrameKind.ROUTED,
            header.call_id,
            length,
            layer=header.layer,
            rows=header.rows,
            hidden=header.hidden,
        )
        self._frames.answer(request, answer)
