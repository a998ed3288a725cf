"""What is said on a new connection before its first call.

TCP links begin with a mutual HMAC handshake; Unix sockets are guarded by their folder's mode (0700)
and begin with ATTACH. On both the server then sends WELCOME with its **incarnation**, a random
number that every serving process draws when it starts. So a client knows that the server took it
in, and can tell a server that was started again from the one it knew by the same address.

In the handshake both sides prove that they know the mesh's secret without sending it (challenge and
response over SHA-256):

  server -> client   magic, server nonce
  client -> server   client nonce, HMAC(secret, "client" + server nonce + client nonce)
  server -> client   HMAC(secret, "server" + server nonce + client nonce)

The first message names the protocol, so a wrong peer is noticed before a secret is used.
"""

import hmac
import secrets
import socket

from actors.wire.frame import HEADER_BYTES, FrameError, FrameKind, Header, unpack_header

GREETING = b"XMSH-HS1"
NONCE_BYTES = 32
PROOF_BYTES = 32
ANSWER_BYTES = NONCE_BYTES + PROOF_BYTES
INCARNATION_BITS = 64


class HandshakeError(FrameError):
    """The peer does not know the mesh's secret or does not speak the protocol."""


def proof(secret: bytes, role: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    return hmac.digest(secret, role + server_nonce + client_nonce, "sha256")


def draw_incarnation() -> int:
    """A number in [1, 2**64) that no other server has; 0 stands for one that is not known."""
    return secrets.randbits(INCARNATION_BITS) or 1


def welcome(incarnation: int) -> bytes:
    """The WELCOME frame of the server with this incarnation."""
    frame = bytearray(HEADER_BYTES)
    Header(FrameKind.WELCOME, incarnation, 0).pack_into(frame)
    return bytes(frame)


def receive_welcome(sock: socket.socket) -> int:
    """The server's incarnation; blocking, bounded by the socket's timeout.

    Raises:
        HandshakeError: the server left or said something else. OSError: the time is over.
    """
    return read_welcome(_receive_exactly(sock, HEADER_BYTES))


def read_welcome(frame: bytes | bytearray) -> int:
    """The incarnation in a WELCOME frame. Raises HandshakeError: it is something else."""
    try:
        header = unpack_header(frame)
    except FrameError as error:
        raise HandshakeError(str(error)) from None
    if header.kind is not FrameKind.WELCOME or not header.call_id:
        raise HandshakeError(f"the server answered with {header.kind.name}, not with WELCOME")
    return header.call_id


def _receive_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise HandshakeError("peer closed the connection during the handshake")
        data += chunk
    return data


def greet_server(sock: socket.socket, secret: bytes) -> None:
    """Client side; blocking, bounded by the socket's timeout.

    Raises:
        HandshakeError: the server is not of this mesh.
    """
    opening = _receive_exactly(sock, len(GREETING) + NONCE_BYTES)
    if not opening.startswith(GREETING):
        raise HandshakeError("peer is not an ExpertMesh data link")
    server_nonce, client_nonce = opening[len(GREETING) :], secrets.token_bytes(NONCE_BYTES)
    sock.sendall(client_nonce + proof(secret, b"client", server_nonce, client_nonce))
    if not hmac.compare_digest(
        _receive_exactly(sock, PROOF_BYTES), proof(secret, b"server", server_nonce, client_nonce)
    ):
        raise HandshakeError("peer does not know this mesh's secret (EXPERTMESH_SECRET)")


class Challenge:
    """Server side, for an event loop: the caller moves the bytes."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._server_nonce = secrets.token_bytes(NONCE_BYTES)

    @property
    def opening(self) -> bytes:
        """What the server sends first."""
        return GREETING + self._server_nonce

    def accept(self, answer: bytes) -> bytes:
        """What the server sends to a client whose answer [ANSWER_BYTES] proves the secret.

        Raises:
            HandshakeError: it does not.
        """
        client_nonce, shown = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
        wanted = proof(self._secret, b"client", self._server_nonce, client_nonce)
        if not hmac.compare_digest(shown, wanted):
            raise HandshakeError("client does not know this mesh's secret (EXPERTMESH_SECRET)")
        return proof(self._secret, b"server", self._server_nonce, client_nonce)
