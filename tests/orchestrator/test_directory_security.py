"""The directory over TCP: protected like the data links, at every level."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.dispatch.subscription import Subscription
from actors.wire.address import Address
from actors.wire.records import RECORD_BYTES
from actors.wire.security import LEVELS, Protection, TcpSecurity
from orchestrator.directory import Directory
from orchestrator.directory_channel import parts
from tests.actors.dispatch.views import content
from tests.actors.wire.between import between
from tests.orchestrator.test_directory import FIRST, until, view

SECRET = b"of this mesh"
WAIT_S = 60.0


async def listening(protection: Protection, **files: Path) -> Directory:
    directory = Directory(SECRET, 1, TcpSecurity(protection, **files))
    await directory.listen([Address("127.0.0.1", 0)])
    return directory


@pytest.mark.parametrize("protection", LEVELS)
def test_views_and_acknowledgements_at_every_level(protection: Protection) -> None:
    async def test() -> None:
        directory = await listening(protection)
        client = Subscription(directory.addresses[0], SECRET, "engine")
        await directory.publish(view(1, "first"))
        seen = await asyncio.to_thread(client.start, WAIT_S)
        assert content(seen) == content(view(1, "first"))
        assert await directory.wait_acknowledged(FIRST, WAIT_S)
        await directory.publish(view(2, "second"))
        assert await asyncio.to_thread(client.wait_change, seen, WAIT_S)
        assert content(client.current()) == content(view(2, "second"))
        client.stop()
        await until(lambda: not directory.subscribers)
        await directory.close()

    asyncio.run(test())


@pytest.mark.parametrize("protection", LEVELS)
def test_a_subscriber_with_another_secret_is_refused(protection: Protection, caplog) -> None:
    async def test() -> None:
        directory = await listening(protection)
        await directory.publish(view(1, "first"))
        client = Subscription(directory.addresses[0], b"another", "engine")
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(client.start, 0.5)
        await directory.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(test())
    assert "client does not know this mesh's secret" in caplog.text


def flip(records: list[bytes]) -> list[bytes]:
    changed = bytearray(records[0])
    changed[len(changed) // 2] ^= 1
    return [bytes(changed), *records[1:]]


def drop_first(records: list[bytes]) -> list[bytes]:
    return records[1:] if len(records) > 1 else []


@pytest.mark.parametrize("change", [flip, drop_first])
def test_a_view_that_was_changed_on_its_way_is_not_taken(
    change: Callable[[list[bytes]], list[bytes]],
) -> None:
    async def test() -> None:
        directory = await listening(Protection.AUTHENTICATED)
        await directory.publish(view(1, "first"))
        with between(directory.addresses[0], to_client=change) as relay:
            client = Subscription(relay.address, SECRET, "engine")
            starting = asyncio.create_task(asyncio.to_thread(client.start, WAIT_S))
            await until(lambda: bool(directory.subscribers or client.failures))
            await directory.publish(view(2, "second"))
            await until(lambda: client.failures > 0)
            client.stop()
            with pytest.raises(ConnectionError, match="a record"):
                await starting
        await directory.close()

    asyncio.run(test())


def test_a_subscriber_whose_words_are_changed_is_refused(caplog) -> None:
    async def test() -> None:
        directory = await listening(Protection.AUTHENTICATED)
        with between(directory.addresses[0], to_server=flip) as relay:
            client = Subscription(relay.address, SECRET, "engine")
            starting = asyncio.create_task(asyncio.to_thread(client.start, WAIT_S))
            await until(lambda: client.failures > 0)
            client.stop()
            with pytest.raises(ConnectionError):
                await starting
        assert not directory.subscribers
        await directory.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(test())
    assert "a record that the peer did not send" in caplog.text


def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "certificate.pem"
    with pytest.raises(ValueError, match=f"cannot use the certificate {missing}.*No such file"):
        asyncio.run(listening(Protection.ENCRYPTED, certificate=missing))


@pytest.mark.parametrize("size", [0, 1, RECORD_BYTES, 2 * RECORD_BYTES + 1])
def test_messages_of_all_lengths_become_records(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    payloads = parts(data[:size])
    assert b"".join(payloads) == data[:size]
    assert all(0 < len(payload) <= RECORD_BYTES for payload in payloads)
