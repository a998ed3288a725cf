"""Peers of one machine are reached by their Unix sockets where that is possible, else over TCP."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.shard.server import ShardServer
from actors.wire.address import Address, parse_address
from actors.wire.link import ClientLink
from tests.actors.dispatch.reaching import reached
from tests.actors.fakes import AffineKernel, running, spec
from tests.actors.wire.bare_server import SECRET
from tests.actors.wire.serving import EVERY_EXPERT, shard_server

WAIT_S = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ShardServer]:
    where = [Address(f"{tmp_path}/s"), parse_address("tcp:127.0.0.1:0")]
    serving = ShardServer(spec(), AffineKernel(EVERY_EXPERT), where, SECRET)
    with running(serving):
        yield serving


def test_the_unix_socket_comes_first(server: ShardServer) -> None:
    unix, tcp = server.addresses
    assert reached(server.incarnation, [tcp, unix]) == str(unix)


def test_tcp_where_the_socket_is_not_in_sight(server: ShardServer, tmp_path: Path) -> None:
    _, tcp = server.addresses
    assert reached(server.incarnation, [Address(f"{tmp_path}/elsewhere"), tcp]) == str(tcp)


def test_tcp_where_another_process_has_the_path(server: ShardServer, tmp_path: Path) -> None:
    _, tcp = server.addresses
    other = shard_server(f"unix:{tmp_path}/other")
    with running(other):
        assert reached(server.incarnation, [other.addresses[0], tcp]) == str(tcp)


def test_tcp_where_others_could_put_a_socket_of_theirs(server: ShardServer, tmp_path: Path) -> None:
    unix, tcp = server.addresses
    tmp_path.chmod(0o777)
    try:
        assert reached(server.incarnation, [unix, tcp]) == str(tcp)
    finally:
        tmp_path.chmod(0o700)


def test_nobody_else_is_taken_for_the_peer(server: ShardServer) -> None:
    assert reached(server.incarnation ^ 1, list(server.addresses)) == ""


def test_a_peer_that_is_busy_is_not_looked_for_elsewhere(server: ShardServer) -> None:
    tried = []

    def busy(address: Address) -> ClientLink:
        tried.append(address)
        raise TimeoutError("timed out")

    assert reached(server.incarnation, list(server.addresses), busy) == ""
    assert set(tried) == {server.addresses[0]}


def in_namespace(setup: str, server: ShardServer) -> str:
    """Where the server is reached by a process with a mount namespace of its own."""
    addresses = " ".join(map(str, server.addresses))
    command = f"{sys.executable} -m tests.actors.dispatch.reaching {server.incarnation} {addresses}"
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{setup} && {command}"],
        capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root")


@needs_root
def test_from_another_namespace_with_a_folder_in_common(server: ShardServer) -> None:
    """Sockets and the memory that is sent over them work across namespaces."""
    assert in_namespace("mount -t tmpfs none /dev/shm", server) == str(server.addresses[0])


@needs_root
def test_from_another_namespace_without_one(server: ShardServer, tmp_path: Path) -> None:
    setup = f"mount -t tmpfs -o mode=0700 none {tmp_path}"
    assert in_namespace(setup, server) == str(server.addresses[1])
