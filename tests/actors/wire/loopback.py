"""A transport inside one process: `notify` computes what is posted and puts the answers there.

Shows what a transport is made of: one module like this one, and one line in `TRANSPORTS`. (One that
other processes reach also gives its addresses a form that `parse_address` reads.)
"""

import socket
from dataclasses import dataclass

import torch

from actors.kernels.base import ExpertKernel
from actors.wire.address import Address
from actors.wire.bell import Bell
from actors.wire.body import call_body, sums_of
from actors.wire.device_memory import DeviceMemory
from actors.wire.frame import HEADER_BYTES, FrameKind, Header, body_bytes, unpack_header
from actors.wire.link import FIRST_SHAPE
from actors.wire.segment import ANSWERED, POSTED, TAKEN, SegmentShape, private_segment

KERNELS: dict[str, ExpertKernel] = {}
"""What computes behind each address, by its host."""


@dataclass(frozen=True, slots=True)
class LoopbackAddress(Address):
    @property
    def scheme(self) -> str:
        return "loopback"


def open_loopback_link(
    address: Address, _: bytes, __: Bell, ___: DeviceMemory | None
) -> "LoopbackLink":
    if address.host not in KERNELS:
        raise ConnectionRefusedError(f"nobody is behind {address}")
    return LoopbackLink(address, FIRST_SHAPE)


class LoopbackLink:
    """See `ClientLink`. Answers are there when `notify` returns, so its socket has no news."""

    incarnation = 0
    area = None
    is_polled = False
    wants_write = False
    is_idle = True

    def __init__(self, address: Address, shape: SegmentShape) -> None:
        self.address, self.segment = address, private_segment(shape)
        self.closed = False
        self._sockets = socket.socketpair()

    def fileno(self) -> int:
        return self._sockets[0].fileno()

    def notify(self) -> None:
        while (slot := self.segment.find(POSTED)) >= 0:
            self.segment.set(slot, TAKEN)
            self._answer(slot)
            self.segment.set(slot, ANSWERED)

    def _answer(self, slot: int) -> None:
        request, answer = self.segment.request(slot), self.segment.answer(slot)
        call = unpack_header(bytes(request[:HEADER_BYTES]))
        body = call_body(call, request[HEADER_BYTES:])
        sums = KERNELS[self.address.host].compute(
            call.layer,
            torch.from_numpy(body.rows.copy()).view(torch.bfloat16),
            torch.from_numpy(body.row_index.copy()),
            torch.from_numpy(body.experts.copy()),
            torch.from_numpy(body.weights.copy()),
        )
        length = body_bytes(FrameKind.RESULT, call.rows, call.hidden)
        Header(
            FrameKind.RESULT, call.call_id, length, rows=call.rows, hidden=call.hidden
        ).pack_into(answer)
        sums_of(answer[HEADER_BYTES:], call.rows, call.hidden)[:] = sums.numpy()

    def progress(self) -> None:
        pass

    def grown(self, shape: SegmentShape) -> "LoopbackLink":
        return LoopbackLink(self.address, shape)

    def close(self) -> None:
        self.closed = True
        for end in self._sockets:
            end.close()
