"""The directory's protocol: views, acknowledgements, the secret over TCP, nonsense."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from actors.dispatch.mesh_view import ViewVersion, view_to_json
from actors.dispatch.subscription import Subscription
from actors.wire.address import Address, connect
from actors.wire.handshake import HandshakeError, greet_server
from actors.wire.messages import LENGTH, encode_message, receive_message, send_message
from orchestrator.directory import Directory
from tests.orchestrator.building import view

SECRET = b"of this mesh"
WAIT_S = 10.0
FIRST = ViewVersion(1, 1)
HELLO = {"role": "engine", "pid": 1, "node": "n"}


@contextlib.asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[tuple[Directory, Address, Address]]:
    """A directory on a Unix socket and on TCP."""
    directory = Directory(SECRET, term=1)
    await directory.listen([Address(str(folder / "d")), Address("127.0.0.1", 0)])
    local, remote = directory.addresses
    try:
        yield directory, local, remote
    finally:
        await directory.close()


def run(test: Callable[[Directory, Address, Address], Coroutine[Any, Any, None]], folder: Path):
    async def body() -> None:
        async with asyncio.timeout(60), listening(folder) as (directory, local, remote):
            await test(directory, local, remote)

    asyncio.run(body())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def subscribe(address: Address, secret: bytes = b"") -> Subscription:
    return Subscription(address, secret, "engine")


def test_a_subscriber_gets_the_newest_view_and_every_later_one(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        await directory.publish(view(1, "first"))
        await directory.publish(view(2, "second"))
        client = subscribe(local)
        seen = await asyncio.to_thread(client.start, WAIT_S)
        assert view_to_json(seen) == view_to_json(view(2, "second"))
        await directory.publish(view(3, "third"))
        assert await asyncio.to_thread(client.wait_change, seen, WAIT_S)
        assert client.current().mesh == "third"
        client.stop()

    run(test, tmp_path)


def test_one_that_comes_first_waits_for_the_first_view(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        client = subscribe(local)
        starting = asyncio.create_task(asyncio.to_thread(client.start, WAIT_S))
        await until(lambda: len(directory.subscribers) == 1)
        assert directory.subscribers[0].version == ViewVersion(0, 0)
        await directory.publish(view())
        assert (await starting).mesh == "test"
        client.stop()

    run(test, tmp_path)


def test_acknowledgements_are_waited_for(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        client = subscribe(local)
        silent = connect(local, WAIT_S)
        await asyncio.to_thread(send_message, silent, HELLO)
        await until(lambda: len(directory.subscribers) == 1)
        await directory.publish(view())
        await asyncio.to_thread(client.start, WAIT_S)
        assert not await directory.wait_acknowledged(FIRST, 0.2), "one has not said so"
        assert (await asyncio.to_thread(receive_message, silent))["view"]["version"] == [1, 1]
        waiting = asyncio.create_task(directory.wait_acknowledged(FIRST, WAIT_S))
        await asyncio.to_thread(send_message, silent, {"version": [1, 1]})
        assert await waiting
        client.stop()
        silent.close()

    run(test, tmp_path)


def test_one_that_left_is_not_waited_for(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        leaving = connect(local, WAIT_S)
        await asyncio.to_thread(send_message, leaving, HELLO)
        await until(lambda: len(directory.subscribers) == 1)
        await directory.publish(view())
        waiting = asyncio.create_task(directory.wait_acknowledged(FIRST, WAIT_S))
        await asyncio.sleep(0.05)
        leaving.close()
        assert await waiting
        assert directory.subscribers == []

    run(test, tmp_path)


def test_tcp_needs_the_secret(tmp_path: Path) -> None:
    async def test(directory: Directory, _: Address, remote: Address) -> None:
        await directory.publish(view())
        client = subscribe(remote, SECRET)
        assert (await asyncio.to_thread(client.start, WAIT_S)).mesh == "test"
        client.stop()
        stranger = connect(remote, WAIT_S)
        with pytest.raises(HandshakeError):
            await asyncio.to_thread(greet_server, stranger, b"a guess")
        stranger.close()
        assert len(directory.subscribers) <= 1

    run(test, tmp_path)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        LENGTH.pack(5) + b"[1,2]",
        LENGTH.pack(3) + b"{{{",
        encode_message({"role": "engine"}),
        encode_message({"role": "engine", "pid": "many", "node": "n"}),
        encode_message(HELLO) + encode_message({"no": "version"}),
    ],
)
def test_nonsense_is_closed_and_harms_nobody(tmp_path: Path, nonsense: bytes) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        odd = connect(local, WAIT_S)
        odd.sendall(nonsense)
        assert await asyncio.to_thread(closed_by_peer, odd)
        assert directory.subscribers == []
        await directory.publish(view())
        client = subscribe(local)
        assert (await asyncio.to_thread(client.start, WAIT_S)).mesh == "test"
        client.stop()

    run(test, tmp_path)


def closed_by_peer(sock: socket.socket) -> bool:
    sock.settimeout(WAIT_S)
    with contextlib.closing(sock):
        try:
            return sock.recv(1) == b""
        except ConnectionResetError:
            return True


def test_a_lost_directory_leaves_the_last_view_in_force(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        await directory.publish(view())
        client = subscribe(local)
        await asyncio.to_thread(client.start, WAIT_S)
        await directory.close()
        assert not await asyncio.to_thread(client.wait_change, client.current(), 0.2)
        assert client.current().mesh == "test"
        client.stop()

    run(test, tmp_path)
