"""The directory: tells every dispatcher what the mesh looks like, over a plain socket.

Dispatchers live in processes that are no Ray actors (vLLM's engine core, a `vllm serve` of somebody
else), so views travel as messages of our own and not as Ray calls. A subscriber gets the newest
view when it connects and then whatever differs in later ones (`actors.dispatch.view_coding`). It
acknowledges a version once its dispatchers follow it.

A view is sent when the one before is on its way, so a subscriber that reads slowly gets the newest
one next and costs no more memory than one view meanwhile.
"""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.dispatch.mesh_view import MeshView, ViewVersion
from actors.dispatch.report import DispatchReport
from actors.dispatch.traffic_counts import TrafficWindow
from actors.dispatch.view_coding import encode_view
from actors.dispatch.view_messages import (
    FROM_SUBSCRIBER,
    AdoptedHead,
    FromSubscriber,
    HelloHead,
    ReportHead,
    TrafficHead,
)
from actors.dispatch.view_source import NO_VERSION
from actors.wire.address import Address, listen
from actors.wire.arrival import TcpHost
from actors.wire.frame import FrameError
from actors.wire.messages import PREFIX, lengths, read_head
from actors.wire.private_folder import require_private
from actors.wire.records import RecordError
from actors.wire.security import HANDSHAKE_ONLY, TcpSecurity
from actors.wire.tcp_options import set_tcp_options
from orchestrator.directory_channel import Channel, greet_subscriber

log = logging.getLogger(__name__)

GREETING_TIMEOUT_S = 5.0
MAX_HEAD_BYTES = 512 << 10
"""Of a subscriber's message, a report of a few thousand shards."""
MAX_BODY_BYTES = 16 << 20
"""Of a subscriber's message once it has greeted: counts of all its kinds of traffic."""


@dataclass(slots=True, eq=False)
class Subscriber:
    """One connected process with dispatchers. version: the last one that they all follow. report:
    the last one of what they did, and when it came (`time.monotonic()`); None before any."""

    role: str
    pid: int
    node: str
    version: ViewVersion = NO_VERSION
    report: DispatchReport | None = None
    reported_s: float = 0.0


class Directory:
    """Publishes `MeshView`s; runs in the controller's event loop."""

    def __init__(
        self,
        secret: bytes,
        term: int,
        security: TcpSecurity = HANDSHAKE_ONLY,
        traffic: Callable[[TrafficWindow], None] = lambda _: None,
    ) -> None:
        """term: of all views; greater than that of every earlier directory of this mesh.

        security: of TCP connections. traffic: is told what subscribers count by kind of traffic.
        """
        self._secret, self._security = secret, security
        self.traffic = traffic
        self._host: TcpHost | None = None
        self._servers: list[asyncio.Server] = []
        self._channels: dict[Subscriber, Channel] = {}
        self._connections: dict[asyncio.Task, asyncio.StreamWriter] = {}
        """Of all sockets, also those that have not greeted yet, by the task that serves them."""
        self._version = ViewVersion(term, 0)
        self._view: MeshView | None = None
        self._messages: dict[ViewVersion, bytes] = {}
        self._published = asyncio.Condition()
        self._acknowledged = asyncio.Condition()
        self.addresses: list[Address] = []

    async def listen(self, addresses: Sequence[Address]) -> None:
        """Open the sockets; `self.addresses` then holds real ports.

        Raises:
            OSError: an address is taken, or others can reach a Unix socket's folder.
            ValueError: the certificate for TLS cannot be used.
        """
        self._host = TcpHost(self._secret, self._security)
        for address in addresses:
            if address.is_unix:
                require_private(Path(address.host).parent)
                server = await asyncio.start_unix_server(self._welcome_local, address.host)
                self.addresses.append(address)
            else:
                sock, real = listen(address)
                server = await asyncio.start_server(self._welcome_remote, sock=sock)
                self.addresses.append(real)
            self._servers.append(server)

    async def close(self) -> None:
        """Close the sockets; returns when nothing of the connections is left."""
        for server in self._servers:
            server.close()
        for writer in self._connections.values():
            writer.transport.abort()
        if self._connections:
            await asyncio.wait(self._connections)

    # -- views

    @property
    def next_version(self) -> ViewVersion:
        """For the next view to be published."""
        return ViewVersion(self._version.term, self._version.number + 1)

    async def publish(self, view: MeshView) -> None:
        """Send `view` to all subscribers, present and future. The last view again changes nothing.

        Raises:
            ValueError: its version is of another term or older than the last one, or is the last
                one's and the view is not; or the view is too large for a message.
        """
        if self._view and view.version == self._version:
            if encode_view(view) != self._message(None):
                raise ValueError(f"another view {view.version} has been published")
            return
        if view.version.term != self._version.term or view.version <= self._version:
            raise ValueError(f"view {view.version} does not follow view {self._version}")
        # All at once: while this waits for the lock, somebody else may publish the next view.
        self._messages = {NO_VERSION: encode_view(view)}
        self._view, self._version = view, view.version
        async with self._published:
            self._published.notify_all()

    def _message(self, base: MeshView | None) -> bytes:
        """The newest view for subscribers that got `base` before."""
        assert self._view is not None
        key = base.version if base else NO_VERSION
        if key not in self._messages:
            self._messages[key] = encode_view(self._view, base)
        return self._messages[key]

    # -- who follows them

    @property
    def subscribers(self) -> list[Subscriber]:
        return list(self._channels)

    def behind(self, version: ViewVersion) -> list[Subscriber]:
        """Subscribers that do not follow `version` or a later one yet."""
        return [subscriber for subscriber in self._channels if subscriber.version < version]

    async def wait_acknowledged(self, version: ViewVersion, timeout_s: float) -> bool:
        """Whether every subscriber follows `version` or a later one within `timeout_s`."""
        async with self._acknowledged:
            try:
                await asyncio.wait_for(
                    self._acknowledged.wait_for(lambda: not self.behind(version)), timeout_s
                )
            except TimeoutError:
                return False
        return True

    def evict(self, subscriber: Subscriber) -> None:
        """Close the connection to one that does not answer; it may connect again."""
        channel = self._channels.pop(subscriber, None)
        if channel is not None:
            log.warning(
                "%s (process %d on %s) does not follow the mesh: closing its connection",
                subscriber.role, subscriber.pid, subscriber.node,
            )  # fmt: skip
            channel.abort()

    # -- one connection

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
        serving = asyncio.current_task()
        assert serving is not None
        self._connections[serving] = writer
        channel = Channel(reader, writer)
        subscriber: Subscriber | None = None
        sending: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                if not proven:
                    set_tcp_options(writer.get_extra_info("socket"))
                    assert self._host is not None, "set before anybody connects"
                    channel = await greet_subscriber(reader, writer, self._host)
                hello, _ = await _receive(channel)
            if not isinstance(hello, HelloHead):
                raise FrameError(f"control message {hello.kind!r} before the greeting")
            subscriber = Subscriber(hello.role, hello.pid, hello.node)
            self._channels[subscriber] = channel
            sending = asyncio.create_task(self._send_views(channel))
            await self._hear(subscriber, channel)
        except (FrameError, RecordError, ssl.SSLError) as error:
            log.warning("refused a subscriber: %s", error)
        except (EOFError, OSError) as error:
            # After the greeting it simply left.
            if subscriber is None and isinstance(error, TimeoutError):
                log.warning("refused a subscriber: no greeting within %g s", GREETING_TIMEOUT_S)
        finally:
            if sending is not None:
                sending.cancel()
            if subscriber is not None:
                self._channels.pop(subscriber, None)
            async with self._acknowledged:
                self._acknowledged.notify_all()
            channel.close()
            with contextlib.suppress(OSError):
                await channel.wait_closed()
            del self._connections[serving]

    async def _send_views(self, channel: Channel) -> None:
        sent: MeshView | None = None
        with contextlib.suppress(OSError):
            while True:
                view = await self._newer_than(sent)
                channel.write(self._message(sent))
                sent = view
                await channel.drain()

    async def _newer_than(self, sent: MeshView | None) -> MeshView:
        async with self._published:
            await self._published.wait_for(lambda: self._view is not sent)
            assert self._view is not None
            return self._view

    async def _hear(self, subscriber: Subscriber, channel: Channel) -> None:
        while True:
            said, body = await _receive(channel, MAX_BODY_BYTES)
            if isinstance(said, TrafficHead):
                try:
                    self.traffic(said.window(body))
                except ValueError as error:
                    raise FrameError(str(error)) from error
                continue
            if isinstance(said, ReportHead):
                subscriber.report, subscriber.reported_s = said.report(), time.monotonic()
                continue
            if not isinstance(said, AdoptedHead):
                raise FrameError(f"control message {said.kind!r} after the greeting")
            if said.version > (self._version.term, self._version.number):
                raise FrameError(f"a subscriber follows view {said.version}, never published")
            async with self._acknowledged:
                subscriber.version = ViewVersion(*said.version)
                self._acknowledged.notify_all()


async def _receive(channel: Channel, max_body: int = 0) -> tuple[FromSubscriber, bytes]:
    prefix = await channel.read_exactly(PREFIX.size)
    head, body = lengths(prefix, MAX_HEAD_BYTES, max_body)
    said = read_head(FROM_SUBSCRIBER, await channel.read_exactly(head))
    return said, await channel.read_exactly(body)
