"""The directory: tells every dispatcher what the mesh looks like, over a plain socket.

Dispatchers live in processes that are no Ray actors (vLLM's engine core, a `vllm serve` of somebody
else), so views travel as JSON messages and not as Ray calls. A subscriber gets the newest view when
it connects and every later one; it acknowledges each by its version.
"""

import asyncio
import contextlib
import hmac
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.dispatch.mesh_view import MeshView, ViewVersion, view_to_json
from actors.wire.address import Address
from actors.wire.frame import FrameError
from actors.wire.handshake import GREETING, NONCE_BYTES, PROOF_BYTES, HandshakeError, proof
from actors.wire.messages import LENGTH, decode_length, decode_message, encode_message

log = logging.getLogger(__name__)

GREETING_TIMEOUT_S = 5.0


NO_VERSION = ViewVersion(0, 0)
"""Older than every view."""


@dataclass(slots=True, eq=False)
class Subscriber:
    """One connected dispatcher. version: of the last view it acknowledged."""

    role: str
    pid: int
    node: str
    version: ViewVersion = NO_VERSION


class Directory:
    """Publishes `MeshView`s; runs in the controller's event loop."""

    def __init__(self, secret: bytes, term: int) -> None:
        self._secret = secret
        self._servers: list[asyncio.Server] = []
        self._writers: dict[Subscriber, asyncio.StreamWriter] = {}
        self._message: bytes | None = None
        self._version = ViewVersion(term, 0)
        self._acknowledged = asyncio.Condition()
        self.addresses: list[Address] = []

    async def listen(self, addresses: Sequence[Address]) -> None:
        """Open the sockets; `self.addresses` then holds real ports."""
        for address in addresses:
            if address.is_unix:
                server = await asyncio.start_unix_server(self._welcome_local, address.host)
                self.addresses.append(address)
            else:
                server = await asyncio.start_server(
                    self._welcome_remote, address.host, address.port
                )
                self.addresses.append(Address(address.host, server.sockets[0].getsockname()[1]))
            self._servers.append(server)

    @property
    def subscribers(self) -> list[Subscriber]:
        return list(self._writers)

    @property
    def next_version(self) -> ViewVersion:
        """For the next view to be published."""
        return ViewVersion(self._version.term, self._version.number + 1)

    async def publish(self, view: MeshView) -> None:
        """Send `view` to all subscribers, present and future.

        Raises:
            ValueError: its version is of another term, or not newer than the last one.
        """
        if view.version.term != self._version.term or view.version <= self._version:
            raise ValueError(f"view {view.version} does not follow view {self._version}")
        self._version = view.version
        self._message = encode_message({"view": view_to_json(view)})
        for writer in self._writers.values():
            writer.write(self._message)

    async def wait_acknowledged(self, version: ViewVersion, timeout_s: float) -> bool:
        """Whether every subscriber follows `version` or a later one within `timeout_s`."""

        def all_follow() -> bool:
            return all(subscriber.version >= version for subscriber in self._writers)

        async with self._acknowledged:
            try:
                await asyncio.wait_for(self._acknowledged.wait_for(all_follow), timeout_s)
            except TimeoutError:
                return False
        return True

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for writer in list(self._writers.values()):
            writer.close()

    async def _welcome_local(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await self._serve(reader, writer, proven=True)

    async def _welcome_remote(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await self._serve(reader, writer, proven=False)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, proven: bool
    ) -> None:
        subscriber: Subscriber | None = None
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                if not proven:
                    await self._challenge(reader, writer)
                hello = await _receive(reader)
            subscriber = Subscriber(str(hello["role"]), int(hello["pid"]), str(hello["node"]))
            self._writers[subscriber] = writer
            if self._message is not None:
                writer.write(self._message)
            while True:
                message = await _receive(reader)
                async with self._acknowledged:
                    subscriber.version = ViewVersion(*map(int, message["version"]))
                    self._acknowledged.notify_all()
        except (EOFError, ConnectionError):
            pass  # it left
        except (FrameError, KeyError, TypeError, ValueError, TimeoutError) as error:
            log.warning("refused a subscriber: %s", error or type(error).__name__)
        finally:
            if subscriber is not None:
                self._writers.pop(subscriber, None)
            async with self._acknowledged:
                self._acknowledged.notify_all()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _challenge(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Server side of the handshake in `actors.wire.handshake`."""
        server_nonce = secrets.token_bytes(NONCE_BYTES)
        writer.write(GREETING + server_nonce)
        client_nonce = await reader.readexactly(NONCE_BYTES)
        answer = await reader.readexactly(PROOF_BYTES)
        expected = proof(self._secret, b"client", server_nonce, client_nonce)
        if not hmac.compare_digest(answer, expected):
            raise HandshakeError("client does not know this mesh's secret (EXPERTMESH_SECRET)")
        writer.write(proof(self._secret, b"server", server_nonce, client_nonce))


async def _receive(reader: asyncio.StreamReader) -> dict[str, Any]:
    length = decode_length(await reader.readexactly(LENGTH.size))
    return decode_message(await reader.readexactly(length))
