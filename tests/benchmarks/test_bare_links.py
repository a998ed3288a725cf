"""The client that the data plane is measured against: it sends what a dispatcher sends."""

from contextlib import ExitStack

import pytest

from actors.shard.server import ShardServer
from actors.wire.address import parse_address
from actors.wire.frame import HEADER_BYTES, IN_BODY, RowCoding, unpack_header
from benchmarks.harness.bare_links import BareClient, frames_of
from tests.actors.dispatch.test_dispatcher import HALVES, SECRET, batch
from tests.actors.fakes import AffineKernel, epoch, running, spec, view


@pytest.mark.parametrize("coding", IN_BODY)
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_every_frame_is_answered(tmp_path, transport: str, coding: RowCoding) -> None:
    with ExitStack() as stack:
        addresses = []
        for number, held in enumerate(HALVES):
            where = f"unix:{tmp_path}/s{number}" if transport == "unix" else "tcp:127.0.0.1:0"
            server = ShardServer(spec(), AffineKernel(held), [parse_address(where)], SECRET)
            stack.enter_context(running(server))
            addresses += server.addresses
        given = view(epoch(HALVES), addresses, rows=coding)
        client = BareClient(given, SECRET)
        stack.callback(client.close)
        for tokens in (1, 33, 3000):
            rows, weights, ids = batch(tokens, seed=tokens)
            frames = frames_of(given, rows, weights, ids.int())
            for _ in range(20):
                assert client.call(frames) >= 0
            headers = [unpack_header(frame[:HEADER_BYTES]) for frame in frames if frame]
            assert sum(header.assignments for header in headers) == ids.numel()
