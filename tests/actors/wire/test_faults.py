"""Peers that die or hang, and strangers, on both transports."""

import logging
import os
import select
import signal
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from actors.wire.address import connect
from actors.wire.body import sums_of
from actors.wire.link import LinkClosed, LinkTimeout, RemoteError
from actors.wire.segment import SLOTS
from tests.actors.fakes import HIDDEN, running
from tests.actors.wire.bare_server import server_process
from tests.actors.wire.serving import (
    Client,
    is_closed_by_peer,
    raw_client,
    shard_server,
)

NOTICED_S = 1.0
"""How soon a killed peer has to be noticed once the system has ended it: long before any deadline.
It takes about a millisecond, where no other process holds the core."""


def deadline(after_s: float) -> float:
    return time.monotonic() + after_s


def end_of(pid: int, after_s: float) -> Future[float]:
    """Kill a process later; the result is when it was gone."""
    pidfd = os.pidfd_open(pid)

    def kill() -> float:
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
        select.select([pidfd], [], [])
        os.close(pidfd)
        return time.monotonic()

    return ThreadPoolExecutor(1).submit(kill)


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_killed_peer_is_noticed_at_once(transport: str, tmp_path) -> None:
    with server_process(transport, tmp_path) as (process, address):
        client = Client(address)
        client.post(1)
        client.wait(1)
        os.kill(process.pid, signal.SIGSTOP)  # so that it dies with the call unanswered
        client.post(2)
        gone_s = end_of(process.pid, after_s=0.1)
        with pytest.raises(LinkClosed) as caught:
            client.wait(2, 60.0)
        assert time.monotonic() - gone_s.result() < NOTICED_S
        assert not isinstance(caught.value, LinkTimeout)
        client.close()


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_stopped_peer_misses_the_deadline(transport: str, tmp_path) -> None:
    with server_process(transport, tmp_path) as (process, address):
        client = Client(address)
        client.post(1)
        client.wait(1)
        os.kill(process.pid, signal.SIGSTOP)
        client.post(2)
        start_s = time.monotonic()
        with pytest.raises(LinkTimeout):
            client.wait(2, 0.2)
        assert 0.2 <= time.monotonic() - start_s < 2.0
        client.close()


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_calls_are_waited_for_in_any_order(transport: str, tmp_path) -> None:
    server = shard_server(f"unix:{tmp_path}/s" if transport == "unix" else "tcp:127.0.0.1:0")
    with running(server):
        client = Client(server.addresses[0])
        for expert in range(4):
            client.post(expert, layer=expert % 2, expert=expert)
        for expert in (2, 0, 3, 1):
            header, body = client.wait(expert)
            wanted = np.full((4, HIDDEN), expert + 1 + expert % 2, np.float32)
            assert np.array_equal(sums_of(body, header.rows, HIDDEN), wanted)
        client.close()


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_bodies_outgrow_the_buffers(transport: str, tmp_path) -> None:
    server = shard_server(f"unix:{tmp_path}/s" if transport == "unix" else "tcp:127.0.0.1:0")
    with running(server):
        client = Client(server.addresses[0])
        client.post(0)  # small, on its way when the buffers grow
        for call_id, rows in enumerate((100_000, 3, 120_000), start=1):
            client.post(call_id, rows=rows)
            header, body = client.wait(call_id, 10)
            assert (sums_of(body, header.rows, HIDDEN) == 3.0).all()
            assert header.rows == rows
        client.wait(0)
        client.close()


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_more_calls_on_their_way_than_a_new_link_has_slots(transport: str, tmp_path) -> None:
    server = shard_server(f"unix:{tmp_path}/s" if transport == "unix" else "tcp:127.0.0.1:0")
    with running(server):
        client = Client(server.addresses[0])
        for call_id in range(3 * SLOTS):
            client.post(call_id, rows=call_id + 1)
        for call_id in reversed(range(3 * SLOTS)):
            assert client.wait(call_id)[0].rows == call_id + 1
        client.close()


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_refused_call_leaves_the_link_usable(transport: str, tmp_path) -> None:
    server = shard_server(f"unix:{tmp_path}/s" if transport == "unix" else "tcp:127.0.0.1:0")
    with running(server):
        client = Client(server.addresses[0])
        client.post(1, layer=7)
        with pytest.raises(RemoteError, match="layer 7 has no routed experts"):
            client.wait(1)
        client.post(2, expert=800)
        with pytest.raises(RemoteError, match="expert out of"):
            client.wait(2)
        client.post(3)
        client.wait(3)
        client.close()


def test_silent_strangers_hold_nobody_up(caplog) -> None:
    """Several connect over TCP and say nothing; a client is served meanwhile, they are closed."""
    server = shard_server("tcp:127.0.0.1:0")
    with caplog.at_level(logging.WARNING), running(server):
        address = server.addresses[0]
        strangers = [connect(address, 5.0) for _ in range(5)]
        start_s = time.monotonic()
        client = Client(address)
        client.post(1)
        client.wait(1)
        assert time.monotonic() - start_s < 1.0
        assert all(is_closed_by_peer(stranger) for stranger in strangers)
        client.post(2)
        client.wait(2)
        client.close()
    assert "said nothing for 2 s" in caplog.text


def test_wrong_secret_is_refused(caplog) -> None:
    server = shard_server("tcp:127.0.0.1:0")
    with caplog.at_level(logging.WARNING), running(server):
        with pytest.raises((LinkClosed, ValueError, OSError)):
            Client(server.addresses[0], b"another")
        raw_client(server.addresses[0]).close()
    assert "client does not know this mesh's secret" in caplog.text


def test_nothing_is_left_behind(tmp_path) -> None:
    """Closed links leave no descriptor in the server and no segment by name."""
    server = shard_server(f"unix:{tmp_path}/s")
    with running(server):

        def use() -> None:
            client = Client(server.addresses[0])
            client.post(1)
            client.wait(1)
            client.close()

        use()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            use()
        end_s = deadline(5)
        while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < end_s:
            time.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) <= before
    assert list(tmp_path.iterdir()) == []


def test_unix_client_without_a_segment_is_refused(tmp_path, caplog) -> None:
    server = shard_server(f"unix:{tmp_path}/s")
    with caplog.at_level(logging.WARNING), running(server):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{tmp_path}/s")
        sock.sendall(b"GET / HTTP/1.1\r\n".ljust(64))
        assert is_closed_by_peer(sock)
    assert "not an ExpertMesh frame" in caplog.text
