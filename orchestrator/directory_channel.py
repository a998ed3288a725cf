"""A TCP subscriber's bytes at the directory, protected as those of the data links are.

The handshake and the levels are `actors.wire.handshake`'s and `actors.wire.security`'s; this moves
the bytes in the controller's event loop.
"""

import asyncio
from collections.abc import Sequence

from actors.wire.arrival import TcpHost
from actors.wire.handshake import ANSWER_BYTES
from actors.wire.records import PREFIX, RECORD_BYTES, TAG_BYTES, Tags, payload_bytes
from actors.wire.security import Protection, SessionKeys


class Channel:
    """What a subscriber says and is told; with `keys` in authenticated records."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        keys: SessionKeys | None = None,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._sent = Tags(keys.server) if keys else None
        self._received = Tags(keys.client) if keys else None
        self._checked = bytearray()

    async def read_exactly(self, count: int) -> bytes:
        """Raises asyncio.IncompleteReadError, RecordError, OSError."""
        if self._received is None:
            return await self._reader.readexactly(count)
        while len(self._checked) < count:
            length = payload_bytes(await self._reader.readexactly(PREFIX.size))
            record = await self._reader.readexactly(length + TAG_BYTES)
            self._received.check(record[:length], record[length:])
            self._checked += record[:length]
        data = bytes(self._checked[:count])
        del self._checked[:count]
        return data

    def write(self, data: bytes) -> None:
        if self._sent is None:
            self._writer.write(data)
            return
        for payload in parts(data):
            self._writer.writelines([PREFIX.pack(len(payload)), payload, self._sent.make(payload)])

    @property
    def unsent_bytes(self) -> int:
        """What was written and has not left this process."""
        return self._writer.transport.get_write_buffer_size()

    async def drain(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        """Close without waiting for what was not sent yet."""
        self._writer.transport.abort()

    async def wait_closed(self) -> None:
        await self._writer.wait_closed()


def parts(data: bytes) -> Sequence[memoryview]:
    """`data` as payloads of records."""
    view = memoryview(data)
    return [view[at : at + RECORD_BYTES] for at in range(0, len(view), RECORD_BYTES)]


async def greet_subscriber(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: TcpHost
) -> Channel:
    """Server side of the handshake.

    Raises:
        HandshakeError: the client does not know the secret. asyncio.IncompleteReadError, OSError.
    """
    challenge = host.challenge()
    writer.write(challenge.opening)
    if host.tls is not None:
        await writer.start_tls(host.tls.context)
    writer.write(challenge.accept(await reader.readexactly(ANSWER_BYTES)))
    keys = challenge.keys() if host.protection is Protection.AUTHENTICATED else None
    return Channel(reader, writer, keys)
