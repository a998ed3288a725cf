"""Ways to shards: measured over real sockets, also long and narrow ones, without the kernel."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.dispatch.link_speed import LinkMeter, LinkSpeed, measure_way
from actors.dispatch.view_source import FixedView
from actors.shard.server import ShardServer
from actors.wire.address import Address, parse_address
from actors.wire.handshake import HandshakeError
from tests.actors.dispatch.test_dispatcher import HALVES, SECRET
from tests.actors.fakes import AffineKernel, epoch, running, spec, view

WAY_S = 0.01
SLICE_BYTES = 64 << 10
TIMEOUT_S = 60.0


@contextmanager
def shard(where: str) -> Iterator[ShardServer]:
    server = ShardServer(spec(), AffineKernel(HALVES), [parse_address(where)], SECRET)
    with running(server):
        yield server


def listening(folder: Path, transport: str) -> str:
    return f"unix:{folder}/shard" if transport == "unix" else "tcp:127.0.0.1:0"


@contextmanager
def far_away(server: Address, slice_s: float = 0.0) -> Iterator[Address]:
    """A relay that passes everything on `WAY_S` later, and takes `slice_s` for each 64 KiB."""
    entrance = socket.create_server(("127.0.0.1", 0))
    opened: list[socket.socket] = []

    def carry(source: socket.socket, target: socket.socket) -> None:
        try:
            while some := source.recv(SLICE_BYTES):
                time.sleep(WAY_S if len(some) < SLICE_BYTES // 4 else slice_s)
                target.sendall(some)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def serve() -> None:
        while True:
            try:
                near, _ = entrance.accept()
            except OSError:
                return
            far = socket.create_connection((server.host, server.port))
            opened.extend((near, far))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield parse_address(f"tcp:127.0.0.1:{entrance.getsockname()[1]}")
    finally:
        entrance.shutdown(socket.SHUT_RDWR)
        entrance.close()
        for one in opened:
            one.close()


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_a_way_is_measured_without_the_kernel(tmp_path: Path, transport: str) -> None:
    with shard(listening(tmp_path, transport)) as server:
        found = measure_way(server.addresses[0], SECRET)
        assert 0 < found.round_trip_s < 1
        assert found.bytes_per_s > 1e6
        assert (server.calls, server.failed_calls, int(server.tokens.sum())) == (0, 0, 0)


def test_a_long_way_takes_longer() -> None:
    with shard("tcp:127.0.0.1:0") as server, far_away(server.addresses[0]) as relay:
        direct = measure_way(server.addresses[0], SECRET)
        found = measure_way(relay, SECRET)
    assert found.round_trip_s >= 2 * WAY_S > direct.round_trip_s


def test_a_narrow_way_carries_less() -> None:
    """At most 64 KiB in 20 ms, each way."""
    with shard("tcp:127.0.0.1:0") as server, far_away(server.addresses[0], 0.02) as relay:
        found = measure_way(relay, SECRET)
    assert found.bytes_per_s < 2 * SLICE_BYTES / 0.02


def test_who_is_not_there_is_not_measured() -> None:
    with shard("tcp:127.0.0.1:0") as server:
        address = server.addresses[0]
        with pytest.raises(HandshakeError):
            measure_way(address, b"another secret")
    with pytest.raises(ConnectionRefusedError):
        measure_way(address, SECRET)


def test_a_meter_keeps_what_the_view_has(tmp_path: Path) -> None:
    gone = parse_address(f"unix:{tmp_path}/nobody")
    with shard(listening(tmp_path, "unix")) as server:
        followed = view(epoch(HALVES), [server.addresses[0], gone])
        meter = LinkMeter(FixedView(followed), SECRET, first_s=0.02)
        try:
            deadline_s = time.monotonic() + TIMEOUT_S
            while not meter.speeds and time.monotonic() < deadline_s:
                time.sleep(0.01)
            assert list(meter.speeds) == [("shard-0", 0)]
            assert isinstance(meter.speeds["shard-0", 0], LinkSpeed)
        finally:
            meter.close()
