"""What is said on a new connection before its first call.

TCP links begin with a mutual HMAC handshake; Unix sockets are guarded by their folder's mode (0700)
and begin with ATTACH. On both the server then sends WELCOME with its **incarnation**, a random
number that every serving process draws when it starts. So a client knows that the server took it
in, and can tell a server that was started again from the one it knew by the same address.

In the handshake both sides prove that they know the mesh's secret without sending it (challenge and
response over SHA-256):

  server -> client   opening: magic, level of protection u8, server nonce
                     [level "encrypted": TLS handshake; what follows goes through TLS]
  client -> server   client nonce, HMAC(secret, "client" + transcript)
  server -> client   HMAC(secret, "server" + transcript)
                     [level "authenticated": what follows goes in records]

  transcript         opening, client nonce [, SHA-256 of the server's certificate]

The first message names the protocol, so a wrong peer is noticed before a secret is used. The
transcript has everything that both sides chose, so that nobody in between can choose for them.
"""

import hmac
import secrets
import socket
from typing import NamedTuple

from actors.wire.frame import HEADER_BYTES, FrameError, FrameKind, Header, unpack_header
from actors.wire.records import client_stream
from actors.wire.security import LEVELS, Protection, SessionKeys, session_keys
from actors.wire.streams import ByteStream, PlainStream, TlsStream, receive_exactly, send_all

GREETING = b"XMSH-HS2"
NONCE_BYTES = 32
PROOF_BYTES = 32
OPENING_BYTES = len(GREETING) + 1 + NONCE_BYTES
ANSWER_BYTES = NONCE_BYTES + PROOF_BYTES
INCARNATION_BITS = 64


class HandshakeError(FrameError):
    """The peer does not know the mesh's secret or does not speak the protocol."""


def draw_incarnation() -> int:
    """A number in [1, 2**64) that no other server has; 0 stands for one that is not known."""
    return secrets.randbits(INCARNATION_BITS) or 1


def welcome(incarnation: int, took_offer: bool = False) -> bytes:
    """The WELCOME frame of the server with this incarnation."""
    frame = bytearray(HEADER_BYTES)
    Header(FrameKind.WELCOME, incarnation, 0, rows=int(took_offer)).pack_into(frame)
    return bytes(frame)


def receive_welcome(stream: ByteStream) -> int:
    """The server's incarnation; blocking, bounded by the socket's timeout.

    Raises:
        HandshakeError: the server left or said something else. OSError: the time is over.
    """
    try:
        return read_welcome(receive_exactly(stream, HEADER_BYTES)).incarnation
    except EOFError as error:
        raise HandshakeError(str(error)) from None


class Welcome(NamedTuple):
    """incarnation: of the server. took_offer: it opened the device memory it was offered."""

    incarnation: int
    took_offer: bool


def read_welcome(frame: bytes | bytearray) -> Welcome:
    """What a WELCOME frame says. Raises HandshakeError: it is something else."""
    try:
        header = unpack_header(frame)
    except FrameError as error:
        raise HandshakeError(str(error)) from None
    if header.kind is not FrameKind.WELCOME or not header.call_id:
        raise HandshakeError(f"the server answered with {header.kind.name}, not with WELCOME")
    return Welcome(header.call_id, header.rows == 1)


def proof(secret: bytes, role: bytes, transcript: bytes) -> bytes:
    """role: b"client" or b"server", so that nobody's proof can be sent back to it."""
    return hmac.digest(secret, role + transcript, "sha256")


def greet_server(sock: socket.socket, secret: bytes) -> ByteStream:
    """Client side; blocking, bounded by the socket's timeout. Use the stream from now on.

    Raises:
        HandshakeError: the server is not of this mesh. OSError: the time is over.
    """
    try:
        return _greet(sock, secret)
    except EOFError:
        raise HandshakeError("peer closed the connection during the handshake") from None


def _greet(sock: socket.socket, secret: bytes) -> ByteStream:
    stream: ByteStream = PlainStream(sock)
    opening = receive_exactly(stream, OPENING_BYTES)
    level = opening[len(GREETING)]
    if not opening.startswith(GREETING) or level >= len(LEVELS):
        raise HandshakeError("peer is not an ExpertMesh data link of this version")
    transcript = opening + secrets.token_bytes(NONCE_BYTES)
    client_nonce = transcript[OPENING_BYTES:]
    if LEVELS[level] is Protection.ENCRYPTED:
        from actors.wire.tls import client_context, shown_certificate

        tls = client_context().wrap_socket(sock)
        stream, transcript = TlsStream(tls), transcript + shown_certificate(tls)
    send_all(stream, client_nonce + proof(secret, b"client", transcript))
    shown = receive_exactly(stream, PROOF_BYTES)
    if not hmac.compare_digest(shown, proof(secret, b"server", transcript)):
        raise HandshakeError("peer does not know this mesh's secret (EXPERTMESH_SECRET)")
    if LEVELS[level] is Protection.AUTHENTICATED:
        return client_stream(sock, session_keys(secret, transcript))
    return stream


class Challenge:
    """Server side, for an event loop: the caller moves the bytes.

    opening: what the server sends first. certificate: digest of the one that TLS shows, if any.
    """

    def __init__(
        self, secret: bytes, protection: Protection = Protection.NONE, certificate: bytes = b""
    ) -> None:
        self._secret, self._certificate = secret, certificate
        level = bytes([LEVELS.index(protection)])
        self.opening = GREETING + level + secrets.token_bytes(NONCE_BYTES)
        self._transcript = b""

    def accept(self, answer: bytes) -> bytes:
        """What the server sends to a client whose answer [ANSWER_BYTES] proves the secret.

        Raises:
            HandshakeError: it does not.
        """
        client_nonce, shown = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
        self._transcript = self.opening + client_nonce + self._certificate
        if not hmac.compare_digest(shown, proof(self._secret, b"client", self._transcript)):
            raise HandshakeError("client does not know this mesh's secret (EXPERTMESH_SECRET)")
        return proof(self._secret, b"server", self._transcript)

    def keys(self) -> SessionKeys:
        """Of the session whose client was accepted."""
        return session_keys(self._secret, self._transcript)
