"""Clients on their way in: who is let in, who is refused, and what a busy server does to them."""

import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from actors.wire.address import Address, connect, parse_address
from actors.wire.bell import Bell
from actors.wire.entrance import ARRIVAL_TIMEOUT_S, MOST_ARRIVALS
from actors.wire.handshake import greet_server, receive_welcome
from actors.wire.server import FrameServer, Request
from actors.wire.streams import PlainStream
from actors.wire.transports import open_link
from tests.actors.fakes import running
from tests.actors.wire.bare_server import SECRET
from tests.actors.wire.serving import Client, RawSegment, shard_server

WAIT_S = 60.0


class BusyServer:
    """A server on both transports whose handler is at work until it is let go."""

    def __init__(self, folder: Path) -> None:
        self.computing, self.go_on = threading.Event(), threading.Event()
        self.handled: list[list[int]] = []
        self.frames = FrameServer(
            [Address(f"{folder}/s"), parse_address("tcp:127.0.0.1:0")], SECRET, self._handle
        )
        self.unix, self.tcp = self.frames.addresses

    def _handle(self, requests: Sequence[Request]) -> None:
        self.handled.append([request.header.call_id for request in requests])
        self.computing.set()
        assert self.go_on.wait(WAIT_S)
        for request in requests:
            self.frames.refuse(request, "that was all")

    def begin_to_compute(self) -> None:
        """Give it a call and return once it computes it."""
        self.client = Client(self.unix)  # kept, or it would leave
        self.client.post(1)
        assert self.computing.wait(WAIT_S)


def test_who_spoke_while_the_server_computed_is_not_late(tmp_path) -> None:
    server = BusyServer(tmp_path)
    with running(server.frames):
        # Both are on their way in, and have not said everything, when the computing begins.
        tcp, unix = connect(server.tcp, WAIT_S), connect(server.unix, WAIT_S)
        opening = tcp.recv(1, socket.MSG_PEEK)
        assert opening
        server.begin_to_compute()
        greeted = threading.Thread(target=greet_server, args=(tcp, SECRET))
        greeted.start()
        client = RawSegment(server.unix, sock=unix)
        time.sleep(ARRIVAL_TIMEOUT_S + 0.3)
        server.go_on.set()
        greeted.join(WAIT_S)
        assert receive_welcome(PlainStream(tcp)) == server.frames.incarnation
        assert receive_welcome(PlainStream(client.sock)) == server.frames.incarnation


def test_the_silent_are_counted_for_each_address(tmp_path) -> None:
    """More of them than may be on their way in on TCP: both ways in are open to others."""
    server = BusyServer(tmp_path)
    server.go_on.set()
    with running(server.frames):
        silent = [connect(server.tcp, WAIT_S) for _ in range(MOST_ARRIVALS + 6)]
        assert silent[-1].recv(1, socket.MSG_PEEK)  # all of them have been let in by now
        for address in (server.unix, server.tcp):
            link = open_link(address, SECRET, Bell())
            assert link.incarnation == server.frames.incarnation
            link.close()
        for sock in silent[:6]:  # who came first had to make room
            assert sock.recv(4096).startswith(b"XMSH")
            assert sock.recv(4096) == b""
        for sock in silent:
            sock.close()


def test_sockets_are_gone_after_a_stop_and_a_second_stop_does_nothing(tmp_path) -> None:
    server = shard_server(f"unix:{tmp_path}/s")
    with running(server):
        assert (tmp_path / "s").exists()
    assert not (tmp_path / "s").exists()
    # The descriptors of the server may be somebody else's by now: nothing is written to them.
    pipes = [os.pipe() for _ in range(20)]
    server.stop()
    for read, write in pipes:
        os.set_blocking(read, False)
        with pytest.raises(BlockingIOError):
            os.read(read, 1)
        os.close(read)
        os.close(write)


def test_a_server_leaves_the_socket_of_the_one_that_took_its_place(tmp_path) -> None:
    first = shard_server(f"unix:{tmp_path}/s")
    with running(first):
        (tmp_path / "s").unlink()
        second = shard_server(f"unix:{tmp_path}/s")
    with running(second):
        open_link(second.addresses[0], SECRET, Bell()).close()


def test_folders_of_others_are_not_used(tmp_path) -> None:
    """Neither for listening nor for connecting."""
    folder = tmp_path / "open to all"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="chmod 700"):
        shard_server(f"unix:{folder}/s")
    folder.chmod(0o700)
    server = shard_server(f"unix:{folder}/s")
    with running(server):
        folder.chmod(0o710)
        with pytest.raises(PermissionError, match="lets other users in"):
            open_link(server.addresses[0], SECRET, Bell())
        folder.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(folder, 12345, -1)
        with pytest.raises(PermissionError, match="belongs to user 12345"):
            open_link(server.addresses[0], SECRET, Bell())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_both_ends_of_tcp_probe_an_idle_connection(tmp_path) -> None:
    server = BusyServer(tmp_path)
    with running(server.frames):
        sock = connect(server.tcp, WAIT_S)
        greet_server(sock, SECRET)
        receive_welcome(PlainStream(sock))
        port = sock.getsockname()[1]
        end_s = time.monotonic() + WAIT_S
        for ends in ((server.tcp.port, port), (port, server.tcp.port)):
            while timer_of(ends) != KEEPALIVE_TIMER:  # until the last bytes are acknowledged
                assert time.monotonic() < end_s
                time.sleep(0.01)
        sock.close()


KEEPALIVE_TIMER = 2
"""In /proc/net/tcp: the timer that runs for a connection on which nothing is on its way."""


def timer_of(ends: tuple[int, int]) -> int:
    """The timer of the connection from the first local port to the second."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ports = tuple(int(end.rpartition(":")[2], 16) for end in fields[1:3])
        if ports == ends:
            return int(fields[5].partition(":")[0], 16)
    raise LookupError(ends)


def test_a_refusal_says_why(tmp_path, caplog) -> None:
    server = BusyServer(tmp_path)
    with caplog.at_level(logging.WARNING), running(server.frames):
        sock = connect(server.tcp, WAIT_S)
        sock.sendall(bytes(64))
        while sock.recv(4096):
            pass
    assert "client does not know this mesh's secret" in caplog.text
