"""TLS 1.3 for TCP links: a server's certificate, made when it starts or given as files.

Certificates need no authority here. Both proofs of the handshake, which is made inside the TLS
connection, cover the certificate that the client was shown (its channel binding), and only who
knows the mesh's secret can make them: somebody in between would have to show another certificate.
"""

import datetime
import os
import ssl
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from actors.wire.security import TcpSecurity

COMMON_NAME = "ExpertMesh"
LIFETIME = datetime.timedelta(days=3650)
"""Clients do not look at it; others that do shall not find it expired."""


def make_certificate() -> bytes:
    """A new key and a certificate that it signed itself, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, COMMON_NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + LIFETIME)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM) + private


class ServerTls:
    """A server's side of TLS. digest: of the certificate that clients are shown."""

    def __init__(self, security: TcpSecurity) -> None:
        """Raises ValueError: the files that `security` names cannot be used."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.num_tickets = 0  # sessions are not resumed
        if security.certificate is None:
            pem = make_certificate()
            _load_from_memory(self.context, pem)
        else:
            pem = self._load(security.certificate, security.key)
        certificate = x509.load_pem_x509_certificate(pem)
        self.digest = sha256(certificate.public_bytes(Encoding.DER)).digest()

    def _load(self, certificate: Path, key: Path | None) -> bytes:
        try:
            self.context.load_cert_chain(certificate, key)
            return certificate.read_bytes()
        except OSError as error:
            files = f"{certificate} with the key in {key or 'the same file'}"
            raise ValueError(f"cannot use the certificate {files}: {error}") from None


def _load_from_memory(context: ssl.SSLContext, pem: bytes) -> None:
    """ssl reads certificates from files only: here from one without a name."""
    fd = os.memfd_create("expertmesh-certificate", os.MFD_CLOEXEC)
    try:
        os.write(fd, pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def client_context() -> ssl.SSLContext:
    """For a client: any certificate, since the handshake inside says whose it has to be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def shown_certificate(sock: ssl.SSLSocket) -> bytes:
    """Digest of the certificate that the server showed."""
    certificate = sock.getpeercert(binary_form=True)
    assert certificate is not None, "a TLS 1.3 server shows one"
    return sha256(certificate).digest()
