"""The round trip without a data plane: the same frames to the same shards by the plainest client.

Nothing is planned, written or added up: frames made beforehand are copied into the slots, or handed
to the sockets, and the answers are left where they arrive. What a dispatcher takes beyond that is
the price of its work. Waits spin by the product's rule (`actors.wire.spin_time`).
"""

import os
import select
import socket
import time
from typing import Protocol

import numpy as np
import torch

from actors.dispatch.backend import bf16_bits
from actors.dispatch.mesh_view import MeshView
from actors.dispatch.split import Split
from actors.wire.address import Address, connect
from actors.wire.bell import Bell
from actors.wire.body import Fp8Rows, call_body
from actors.wire.fp8_rows import encode_row
from actors.wire.frame import (
    HEADER_BYTES,
    FrameKind,
    Header,
    RowCoding,
    body_bytes,
    unpack_header,
)
from actors.wire.handshake import greet_server, receive_welcome
from actors.wire.link import FIRST_SHAPE
from actors.wire.node import node_id
from actors.wire.segment import (
    ANSWERED,
    CLIENT_ASLEEP,
    FREE,
    POSTED,
    SERVER_ASLEEP,
    create_segment,
    state_word,
)
from actors.wire.spin_time import SpinTime
from native.atomics import observe, publish

CONNECT_TIMEOUT_S = 10.0
SLOT = 0


def frames_of(
    view: MeshView, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor
) -> list[bytes]:
    """What a dispatcher sends each shard for a batch of layer 0; b"" where there are no rows."""
    split = Split()
    usable = np.ones(len(view.shards), np.bool_)
    split.plan(view.table, 0, usable, view.cost.copy(), ids.numpy(), weights.numpy())
    bits, hidden = bf16_bits(rows), rows.shape[1]
    frames = [b""] * len(view.shards)
    for shard, count, assignments in split.shares():
        near = view.shards[shard].addresses_from(node_id())[0].is_unix
        coding = RowCoding.BF16 if near else view.rows_between_nodes
        length = body_bytes(FrameKind.CALL, count, hidden, assignments, coding)
        header = Header(
            FrameKind.CALL, 1 + shard, length, rows=count, hidden=hidden, assignments=assignments,
            coding=coding,
        )  # fmt: skip
        frame = bytearray(HEADER_BYTES + length)
        header.pack_into(frame)
        body, batch = call_body(header, memoryview(frame)[HEADER_BYTES:]), split.batch(shard)
        body.row_index[:], body.experts[:] = batch.row_index, batch.experts
        body.weights[:] = batch.weights
        if isinstance(body.rows, Fp8Rows):
            for i, row in enumerate(batch.rows):
                body.rows.scales[i] = encode_row(bits[row], body.rows.codes[i])
        else:
            body.rows[:] = bits[batch.rows]
        frames[shard] = bytes(frame)
    return frames


class BareLink(Protocol):
    """One connection for one call at a time."""

    def send(self, frame: bytes) -> None: ...

    def poll(self) -> bool:
        """Whether the answer is here; does not wait."""
        ...

    def wait(self) -> None:
        """Sleep until there is something new."""
        ...

    def take(self) -> int:
        """Microseconds of the kernel; the answer is done with."""
        ...

    def close(self) -> None: ...


class BareShared:
    """A slot in shared memory."""

    def __init__(self, address: Address, bell: Bell) -> None:
        self._bell = bell
        self._socket = connect(address, CONNECT_TIMEOUT_S)
        self._segment, fd = create_segment(FIRST_SHAPE)
        hello = bytearray(HEADER_BYTES)
        Header(FrameKind.ATTACH, 0, 0).pack_into(hello)
        socket.send_fds(self._socket, [hello], [fd, bell.fd])
        os.close(fd)
        receive_welcome(self._socket)
        self._words = self._segment.words
        self._request, self._answer = self._segment.request(SLOT), self._segment.answer(SLOT)
        self._state = state_word(SLOT)

    def send(self, frame: bytes) -> None:
        self._request[: len(frame)] = frame
        publish(self._words, self._state, POSTED)
        if observe(self._words, SERVER_ASLEEP):
            self._bell.needed = True

    def poll(self) -> bool:
        return bool(observe(self._words, self._state) == ANSWERED)

    def wait(self) -> None:
        publish(self._words, CLIENT_ASLEEP, 1)
        if not self.poll():
            self._socket.recv(64)
        publish(self._words, CLIENT_ASLEEP, 0)

    def take(self) -> int:
        compute_us = unpack_header(self._answer[:HEADER_BYTES]).compute_us
        publish(self._words, self._state, FREE)
        return compute_us

    def close(self) -> None:
        self._socket.close()


class BareStream:
    """A TCP connection, authenticated or encrypted as the mesh's are."""

    def __init__(self, address: Address, secret: bytes) -> None:
        self._stream = greet_server(connect(address, CONNECT_TIMEOUT_S), secret)
        receive_welcome(self._stream)
        self._stream.setblocking(False)
        self._room = memoryview(bytearray(FIRST_SHAPE.answer_bytes))
        self._filled, self._expected = 0, HEADER_BYTES
        self._poll = select.poll()
        self._poll.register(self._stream.fileno(), select.POLLIN)

    def send(self, frame: bytes) -> None:
        rest = memoryview(frame)
        while rest:
            try:
                rest = rest[self._stream.send(rest) :]
            except BlockingIOError:
                select.select([], [self._stream.fileno()], [])

    def poll(self) -> bool:
        while self._filled < self._expected:
            try:
                self._filled += self._stream.recv_into(self._room[self._filled :])
            except BlockingIOError:
                return False
            if self._filled >= HEADER_BYTES:
                header = unpack_header(self._room[:HEADER_BYTES])
                self._expected = HEADER_BYTES + header.body_bytes
        return True

    def wait(self) -> None:
        self._poll.poll()

    def take(self) -> int:
        self._filled, self._expected = 0, HEADER_BYTES
        return unpack_header(self._room[:HEADER_BYTES]).compute_us

    def close(self) -> None:
        self._stream.close()


class BareClient:
    """All shards of a view."""

    def __init__(self, view: MeshView, secret: bytes) -> None:
        self._bell = Bell()
        self._spin_time = SpinTime()
        self._links: list[BareLink] = [
            BareShared(address, self._bell) if address.is_unix else BareStream(address, secret)
            for address in (shard.addresses_from(node_id())[0] for shard in view.shards)
        ]

    def call(self, frames: list[bytes]) -> int:
        """Send a frame to each shard and wait for all answers; the longest kernel time in us."""
        waiting = []
        for link, frame in zip(self._links, frames, strict=True):
            if frame:
                link.send(frame)
                waiting.append(link)
        self._bell.ring()
        start_s = time.perf_counter()
        left, spun_s = list(waiting), 0.0
        while left and spun_s < self._spin_time.spin_s:
            left = [link for link in left if not link.poll()]
            if left:
                os.sched_yield()
            spun_s = time.perf_counter() - start_s
        while left:
            if not left[0].poll():
                left[0].wait()
            left = [link for link in left if not link.poll()]
        self._spin_time.learn(time.perf_counter() - start_s, spun_s)
        return max(link.take() for link in waiting)

    def close(self) -> None:
        for link in self._links:
            link.close()
        self._bell.close()
