"""The directory's protocol: views, what follows them, nonsense, slow readers."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.dispatch import subscription
from actors.dispatch.mesh_view import MeshView, ViewVersion
from actors.dispatch.report import DispatchReport, ShardReport
from actors.dispatch.subscription import Subscription
from actors.dispatch.traffic_counts import TrafficCounts, TrafficKey, TrafficWindow
from actors.dispatch.view_coding import decode_view, encode_view
from actors.dispatch.view_messages import FROM_DIRECTORY, AdoptedHead, HelloHead, TrafficHead
from actors.dispatch.view_source import NO_VERSION
from actors.wire.address import Address, connect
from actors.wire.frame import IN_BODY, RowCoding
from actors.wire.handshake import OPENING_BYTES, HandshakeError, greet_server
from actors.wire.messages import PREFIX, Head, pack, read_head, receive_message
from orchestrator.directory import MAX_BODY_BYTES, MAX_HEAD_BYTES, Directory
from orchestrator.traffic_load import TrafficLoad
from tests.actors.dispatch.views import content
from tests.orchestrator.building import epoch, view

SECRET = b"of this mesh"
WAIT_S = 60.0
HELLO = pack(HelloHead(role="engine", pid=1, node="n"))
FIRST = ViewVersion(1, 1)


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
        async with asyncio.timeout(240), listening(folder) as (directory, local, remote):
            await test(directory, local, remote)

    asyncio.run(body())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


class Reader:
    """A subscriber driven by the test, which acknowledges only what it is told to."""

    def __init__(self, address: Address) -> None:
        self.sock = connect(address, WAIT_S)
        self.sock.sendall(HELLO)
        self.view: MeshView | None = None

    async def receive(self) -> MeshView:
        head, body = await asyncio.to_thread(receive_message, self.sock)
        self.view = decode_view(head, body, self.view)
        return self.view

    def adopt(self, version: ViewVersion) -> None:
        self.sock.sendall(pack(AdoptedHead(version=(version.term, version.number))))

    def close(self) -> None:
        self.sock.close()


def subscribe(address: Address, secret: bytes = b"") -> Subscription:
    return Subscription(address, secret, "engine")


def test_a_subscriber_gets_the_newest_view_and_every_later_one(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        await directory.publish(view(1, "first"))
        await directory.publish(view(2, "second"))
        client = subscribe(local)
        seen = await asyncio.to_thread(client.start, WAIT_S)
        assert content(seen) == content(view(2, "second"))
        await directory.publish(view(3, "third"))
        assert await asyncio.to_thread(client.wait_change, seen, WAIT_S)
        assert content(client.current()) == content(view(3, "third"))
        client.stop()

    run(test, tmp_path)


@pytest.mark.parametrize("coding", IN_BODY)
def test_the_coding_of_rows_goes_through_the_directory(tmp_path: Path, coding: RowCoding) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        await directory.publish(replace(view(1), rows_between_nodes=RowCoding(1 - coding)))
        client = subscribe(local)
        seen = await asyncio.to_thread(client.start, WAIT_S)
        await directory.publish(replace(view(2), rows_between_nodes=coding))
        assert await asyncio.to_thread(client.wait_change, seen, WAIT_S)
        assert client.current().rows_between_nodes is coding
        client.stop()

    run(test, tmp_path)


def test_one_that_comes_first_waits_for_the_first_view(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        client = subscribe(local)
        starting = asyncio.create_task(asyncio.to_thread(client.start, WAIT_S))
        await until(lambda: len(directory.subscribers) == 1)
        assert directory.subscribers[0].version == NO_VERSION
        await directory.publish(view())
        assert (await starting).mesh == "test"
        client.stop()

    run(test, tmp_path)


def test_later_views_come_as_what_differs(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        reader = Reader(local)
        await directory.publish(view(1))
        whole = len(encode_view(await reader.receive()))
        slower = tuple(replace(peer, weight=0.5) for peer in view().shards)
        second = replace(view(2), shards=slower)
        await directory.publish(second)
        head, body = await asyncio.to_thread(receive_message, reader.sock)
        assert len(head) + len(body) < whole
        assert content(decode_view(head, body, reader.view)) == content(second)
        reader.close()

    run(test, tmp_path)


# -- versions


def test_versions_go_up(tmp_path: Path) -> None:
    async def test(directory: Directory, *_: Address) -> None:
        assert directory.next_version == FIRST
        await directory.publish(view(2))
        assert directory.next_version == ViewVersion(1, 3)
        for version in (ViewVersion(1, 1), ViewVersion(0, 9), ViewVersion(2, 1)):
            with pytest.raises(ValueError, match=r"does not follow view 1\.2"):
                await directory.publish(replace(view(), version=version))
        assert directory.next_version == ViewVersion(1, 3)

    run(test, tmp_path)


def test_the_same_view_again_changes_nothing(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        await directory.publish(view())
        client = subscribe(local)
        seen = await asyncio.to_thread(client.start, WAIT_S)
        await directory.publish(view())
        assert not await asyncio.to_thread(client.wait_change, seen, 0.1)
        with pytest.raises(ValueError, match=r"another view 1\.1"):
            await directory.publish(view(1, "other"))
        client.stop()

    run(test, tmp_path)


# -- acknowledgements


def test_acknowledgements_are_waited_for(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        client, silent = subscribe(local), Reader(local)
        await until(lambda: len(directory.subscribers) == 1)
        await directory.publish(view())
        await asyncio.to_thread(client.start, WAIT_S)
        assert not await directory.wait_acknowledged(FIRST, 0.2), "one has not said so"
        assert [one.pid for one in directory.behind(FIRST)] == [1]
        await silent.receive()
        waiting = asyncio.create_task(directory.wait_acknowledged(FIRST, WAIT_S))
        silent.adopt(FIRST)
        assert await waiting
        assert directory.behind(FIRST) == []
        client.stop()
        silent.close()

    run(test, tmp_path)


def test_one_that_left_is_not_waited_for(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        leaving = Reader(local)
        await until(lambda: len(directory.subscribers) == 1)
        await directory.publish(view())
        waiting = asyncio.create_task(directory.wait_acknowledged(FIRST, WAIT_S))
        await leaving.receive()
        assert not waiting.done()
        leaving.close()
        assert await waiting
        assert directory.subscribers == []

    run(test, tmp_path)


def test_a_silent_one_is_evicted_and_comes_back(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        client = subscribe(local)
        follower = client.join()
        follower.calls = 1  # it hangs in a call
        await directory.publish(view())
        seen = await asyncio.to_thread(client.start, WAIT_S)
        assert not await directory.wait_acknowledged(FIRST, 0.1)
        (silent,) = directory.behind(FIRST)
        directory.evict(silent)
        assert await directory.wait_acknowledged(FIRST, WAIT_S), "nobody is left to wait for"
        directory.evict(silent)
        await until(lambda: len(directory.subscribers) == 1)
        assert client.current() is seen, "the view that it had is still in force"
        follower.calls = 0
        await until(lambda: not directory.behind(FIRST))
        assert directory.subscribers != [silent]
        client.stop()

    run(test, tmp_path)


def test_nobody_follows_a_view_that_was_never_published(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        liar = Reader(local)
        await directory.publish(view())
        await liar.receive()
        liar.adopt(ViewVersion(1, 2))
        assert await asyncio.to_thread(closed_by_peer, liar.sock)
        assert directory.subscribers == []

    run(test, tmp_path)


def test_a_slow_reader_gets_the_newest_view_and_costs_no_memory(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        slow, client = Reader(local), subscribe(local)
        long_name = "x" * 100_000
        for number in range(1, 200):
            await directory.publish(view(number, long_name + str(number)))
            await asyncio.sleep(0)
        last = ViewVersion(1, 199)
        await asyncio.to_thread(client.start, WAIT_S)
        await until(lambda: client.current().version == last)
        assert waiting_bytes(directory) < 300_000
        received = [await slow.receive()]
        while received[-1].version != last:
            received.append(await slow.receive())
        assert len(received) < 20, "what it did not read in time was left out"
        assert content(received[-1]) == content(view(199, long_name + "199"))
        slow.close()
        client.stop()

    run(test, tmp_path)


def waiting_bytes(directory: Directory) -> int:
    """In this process, on their way to all subscribers."""
    return sum(channel.unsent_bytes for channel in directory._channels.values())


def test_subscribers_are_known_by_what_they_said(tmp_path: Path, caplog) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        reader = Reader(local)
        await until(lambda: bool(directory.subscribers))
        (known,) = directory.subscribers
        assert (known.role, known.pid, known.node) == ("engine", 1, "n")
        directory.evict(known)
        assert caplog.messages == [
            "engine (process 1 on n) does not follow the mesh: closing its connection"
        ]
        reader.close()

    run(test, tmp_path)


def test_what_differs_is_sent_to_who_has_the_view_before(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        await directory.publish(view(1, "first"))
        reader = Reader(local)
        first = await reader.receive()
        for number in (2, 3):
            await directory.publish(view(number, f"view {number}"))
            head, body = await asyncio.to_thread(receive_message, reader.sock)
            assert read_head(FROM_DIRECTORY, head).base == (1, number - 1)
            reader.view = decode_view(head, body, reader.view)
        assert content(reader.view) == content(view(3, "view 3"))
        late = Reader(local)
        assert content(await late.receive()) == content(view(3, "view 3")), "whole"
        assert first.version < reader.view.version
        late.close()
        reader.close()

    run(test, tmp_path)


# -- the secret


def test_tcp_needs_the_secret(tmp_path: Path) -> None:
    async def test(directory: Directory, _: Address, remote: Address) -> None:
        await directory.publish(view())
        client = subscribe(remote, SECRET)
        assert (await asyncio.to_thread(client.start, WAIT_S)).mesh == "test"
        stranger = connect(remote, WAIT_S)
        with pytest.raises(HandshakeError):
            await asyncio.to_thread(greet_server, stranger, b"a guess")
        stranger.close()
        assert len(directory.subscribers) == 1
        client.stop()

    run(test, tmp_path)


@pytest.mark.parametrize("answer", [bytes(64), b"\1" * 64, HELLO.ljust(64)])
def test_a_client_that_proves_nothing_learns_nothing(tmp_path: Path, answer: bytes) -> None:
    """It does not look at the server's proof, so that it gets to the server's own check."""

    async def test(directory: Directory, _: Address, remote: Address) -> None:
        await directory.publish(view())
        stranger = connect(remote, WAIT_S)
        stranger.sendall(answer + HELLO)
        said = await asyncio.to_thread(read_to_the_end, stranger)
        assert len(said) == OPENING_BYTES, "its opening, and not a byte more"
        assert directory.subscribers == []

    run(test, tmp_path)


def test_a_client_that_says_nothing_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.directory.GREETING_TIMEOUT_S", 0.1)

    async def test(_: Directory, local: Address, remote: Address) -> None:
        for address in (local, remote):
            assert (
                len(await asyncio.to_thread(read_to_the_end, connect(address, WAIT_S)))
                <= OPENING_BYTES
            )

    run(test, tmp_path)


# -- nonsense


def test_what_dispatchers_did_comes_to_the_directory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(subscription, "REPORT_S", 0.02)

    async def test(directory: Directory, local: Address, _: Address) -> None:
        await directory.publish(view())
        client = subscribe(local)
        await asyncio.to_thread(client.start, WAIT_S)
        for late in (1, 2):
            follower = client.join()
            shard = ShardReport("a", 2**63, 1.5 * late, late=late, is_wrong=late > 1)
            follower.report = partial(DispatchReport, calls=3, shards=(shard,))
        await until(lambda: told(directory).calls == 6)
        assert told(directory).shards == (ShardReport("a", 2**63, 3.0, late=3, is_wrong=True),)
        (subscriber,) = directory.subscribers
        assert subscriber.version == FIRST, "it acknowledges as before"
        came_s = subscriber.reported_s
        await asyncio.sleep(0.2)
        assert subscriber.reported_s == came_s, "nothing new, nothing sent"
        client.stop()

    run(test, tmp_path)


def test_load_by_kind_of_traffic_comes_to_the_directory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(subscription, "REPORT_S", 0.02)

    async def test(directory: Directory, _: Address, remote: Address) -> None:
        heard: list[TrafficWindow] = []
        directory.traffic = heard.append
        await directory.publish(view())
        client = subscribe(remote, SECRET)
        client.traffic = counts = TrafficCounts([0], 4)
        await asyncio.to_thread(client.start, WAIT_S)
        for tokens in (2, 3):
            counts.add([TrafficKey("code")], np.array([tokens]), np.full((1, 1, 4), tokens))
            await until(lambda: bool(heard))
            assert heard.pop().counts.tolist() == [[[tokens] * 4]]
        client.stop()

    run(test, tmp_path)


def test_load_of_another_model_ends_the_connection(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        directory.traffic = TrafficLoad("tiny", (0, 1), 4).add
        window = TrafficWindow(
            (0,), (TrafficKey("a"),), np.array([1]), np.ones((1, 1, 4), np.int64)
        )
        odd = connect(local, WAIT_S)
        odd.sendall(HELLO + pack(*TrafficHead.of(window)))
        assert await asyncio.to_thread(closed_by_peer, odd)

    run(test, tmp_path)


def told(directory: Directory) -> DispatchReport:
    reports = [one.report for one in directory.subscribers if one.report is not None]
    return reports[0] if reports else DispatchReport()


class NoneSuchHead(Head):
    kind: str = "gossip"


def raw(text: bytes, body: bytes = b"") -> bytes:
    return PREFIX.pack(len(text), len(body)) + text + body


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        raw(b"[1,2]"),
        raw(b"{{{"),
        raw(b'{"kind":"hello","role":"engine"}'),
        raw(b'{"kind":"hello","role":"engine","pid":"many","node":"n"}'),
        raw(b'{"kind":"hello","role":"engine","pid":1,"node":"n","arrays":7}'),
        raw(b'{"kind":"adopted","version":[0,0]}'),
        pack(NoneSuchHead()),
        PREFIX.pack(MAX_HEAD_BYTES + 1, 0),
        PREFIX.pack(2, 1),
        HELLO + raw(b'{"no":"version"}'),
        HELLO + raw(b'{"kind":"adopted","version":7}'),
        HELLO + raw(b'{"kind":"adopted","version":[1,null]}'),
        HELLO + HELLO,
        HELLO + raw(b'{"kind":"report","calls":-1}'),
        HELLO + raw(b'{"kind":"traffic","layers":[0],"keys":[]}', b"1234"),
        pack(TrafficHead(layers=(0,), keys=()), [np.zeros((0, 1, 4), np.int32)]),
        HELLO + PREFIX.pack(100, MAX_BODY_BYTES + 1),
        raw(b'{"kind":"report"}'),
    ],
)
def test_nonsense_is_closed_and_harms_nobody(tmp_path: Path, nonsense: bytes) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        odd = connect(local, WAIT_S)
        odd.sendall(nonsense)
        assert await asyncio.to_thread(closed_by_peer, odd)
        await until(lambda: directory.subscribers == [])
        await directory.publish(view())
        client = subscribe(local)
        assert (await asyncio.to_thread(client.start, WAIT_S)).mesh == "test"
        client.stop()

    run(test, tmp_path)


def closed_by_peer(sock: socket.socket) -> bool:
    read_to_the_end(sock)
    return True


def read_to_the_end(sock: socket.socket) -> bytes:
    """All that the peer says before it closes; raises TimeoutError where it does not."""
    sock.settimeout(WAIT_S)
    said = b""
    with contextlib.closing(sock), contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(4096):
            said += chunk
    return said


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


def test_a_view_that_is_too_large_is_not_published(tmp_path: Path) -> None:
    async def test(directory: Directory, *_: Address) -> None:
        with pytest.raises(ValueError, match="too large"):
            await directory.publish(view(1, "x" * (5 << 20)))
        assert directory.next_version == FIRST
        await directory.publish(replace(view(), epoch=epoch([[0, 1, 2], [2, 3]])))

    run(test, tmp_path)


def test_nothing_is_left_after_close(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, remote: Address) -> None:
        await directory.publish(view())
        reader, greeting = Reader(local), connect(remote, WAIT_S)
        await reader.receive()
        await until(lambda: len(directory._connections) == 2)
        await directory.close()
        await directory.close()
        assert directory.subscribers == []
        assert len(asyncio.all_tasks()) == 1, "the test itself"
        assert await asyncio.to_thread(closed_by_peer, reader.sock)
        assert await asyncio.to_thread(closed_by_peer, greeting)

    run(test, tmp_path)


def test_a_folder_that_others_can_look_into_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(PermissionError, match="chmod 700"):
        asyncio.run(Directory(SECRET, term=1).listen([Address(str(tmp_path / "d"))]))
    tmp_path.chmod(0o700)


def test_views_published_at_once_stay_in_order(tmp_path: Path) -> None:
    async def test(directory: Directory, local: Address, _: Address) -> None:
        client = subscribe(local)
        starting = asyncio.create_task(asyncio.to_thread(client.start, WAIT_S))
        await until(lambda: len(directory.subscribers) == 1)
        # A subscriber that looks for news holds the lock while these are called.
        async with directory._published:
            publishing = [
                asyncio.create_task(directory.publish(view(number))) for number in (1, 2, 3)
            ]
            await asyncio.sleep(0)
            assert directory.next_version == ViewVersion(1, 4)
        await asyncio.gather(*publishing)
        await starting
        await until(lambda: client.current().version == ViewVersion(1, 3))
        client.stop()

    run(test, tmp_path)
