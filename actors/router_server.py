"""Serve whole batches on behalf of engines: ROUTE frames in, ROUTED frames out.

The router of `router.mode: actor`: it holds the plan and the links to the shards, so engines hold
neither. No Ray here; `router.py` puts this into an actor.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from actors.dispatch.backend import ExpertBackend, bf16_bits, bf16_tensor
from actors.wire.address import Address
from actors.wire.body import route_body
from actors.wire.frame import FrameKind, Header, body_bytes
from actors.wire.server import FrameServer, Request

log = logging.getLogger(__name__)


class RouterServer:
    """Answers ROUTE frames from a backend, one after the other."""

    def __init__(self, backend: ExpertBackend, addresses: Sequence[Address], secret: bytes) -> None:
        self._backend = backend
        self._frames = FrameServer(addresses, secret, self._handle)
        self.addresses = self._frames.addresses
        self.calls = 0

    def run(self) -> None:
        """Serve until `stop`; blocks its thread."""
        self._frames.run()

    def stop(self) -> None:
        self._frames.stop()

    def _handle(self, requests: Sequence[Request]) -> None:
        for request in requests:
            try:
                self._route(request)
            except (RuntimeError, LookupError, ValueError) as error:
                log.warning("layer %d: %s", request.header.layer, error)
                self._frames.refuse(request, str(error))

    def _route(self, request: Request) -> None:
        header = request.header
        if header.kind is not FrameKind.ROUTE or (header.rows and header.assignments % header.rows):
            raise ValueError(f"a router serves well-formed ROUTE frames, not {header}")
        body = route_body(header, request.body)
        call = self._backend.send(
            header.layer,
            bf16_tensor(body.rows),
            torch.from_numpy(body.topk_weights),
            torch.from_numpy(body.topk_ids),
        )
        rows = np.ascontiguousarray(bf16_bits(self._backend.wait(call)))
        self.calls += 1
        length = body_bytes(FrameKind.ROUTED, header.rows, header.hidden, 0)
        answer = Header(
            FrameKind.ROUTED,
            header.call_id,
            length,
            layer=header.layer,
            rows=header.rows,
            hidden=header.hidden,
        )
        self._frames.answer(request, answer, rows.data.cast("B"))
