"""How TCP connections between nodes are protected, chosen by the server for each of its clients.

The server names its level in the first message of the handshake, and both proofs of the handshake
cover that message, so nobody in between can ask for less. Session keys are made of the mesh's
secret and both nonces (HKDF), one for each direction.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

KEY_BYTES = 32


class Protection(StrEnum):
    """What a TCP connection has after its handshake."""

    NONE = "none"
    """Nothing more: both ends knew the secret, and what follows can be read and changed."""
    AUTHENTICATED = "authenticated"
    """Every record has a tag with its sequence number: what was changed, left out, repeated or sent
    by others ends the connection. It can be read."""
    ENCRYPTED = "encrypted"
    """TLS 1.3: as above, and it can neither be read nor be decrypted later by who learns the
    secret."""


LEVELS = tuple(Protection)
"""On the wire a level is its index here."""


@dataclass(frozen=True, slots=True)
class TcpSecurity:
    """What a server gives its TCP clients.

    certificate, key: PEM files for TLS; None: the server makes a certificate of its own. Either way
    clients know the server by its proof of the mesh's secret, which covers the certificate.
    """

    protection: Protection = Protection.NONE
    certificate: Path | None = None
    key: Path | None = None


HANDSHAKE_ONLY = TcpSecurity()


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """client: for what the client sends; server: for what the server sends."""

    client: bytes
    server: bytes


def session_keys(secret: bytes, transcript: bytes) -> SessionKeys:
    """Keys of the session whose handshake was `transcript`, which holds both sides' nonces."""
    # Here, because the config's reader needs this module and no cryptography.
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    def derive(role: bytes) -> bytes:
        return HKDF(SHA256(), KEY_BYTES, salt=transcript, info=b"XMSH " + role).derive(secret)

    return SessionKeys(derive(b"client"), derive(b"server"))
