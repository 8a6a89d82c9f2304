"""Self-signed certificates for trying out TLS; not needed if you have a real certificate."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ALWAYS: Final = ("localhost", "127.0.0.1", "::1")
"""Names that every certificate is valid for."""
_VALID: Final = timedelta(days=30)
_RENEWED_BEFORE: Final = timedelta(days=3)
_CLOCKS_DIFFER: Final = timedelta(minutes=5)
_NAME: Final = "Tickcast, self-signed"


class Pair(NamedTuple):
    """The files of a certificate and of its private key, both PEM."""

    cert: Path
    key: Path


def provide(directory: Path, hosts: Iterable[str] = ()) -> Pair:
    """Return the pair in a directory, creating a new one if there is no suitable one.

    The pair is renewed three days before it expires, or if it is not valid for one of the hosts.

    Args:
        directory: must exist and be writable by this user only.
        hosts: names and addresses that it must be valid for, besides `ALWAYS`.

    Raises:
        OSError: the files can't be written.
    """
    pair = Pair(directory / "demo-cert.pem", directory / "demo-key.pem")
    wanted = {*ALWAYS, *hosts}
    if not _will_do(pair, wanted):
        write(pair, wanted)
    return pair


def write(pair: Pair, hosts: Iterable[str]) -> None:
    """Make a new certificate and key and write them; only this user can read the key.

    Raises:
        OSError: the files can't be written.
    """
    cert, key = make(hosts)
    # The key comes first. Until the certificate follows, a reader finds a mismatched pair and
    # waits.
    _replace(pair.key, key, 0o600)
    _replace(pair.cert, cert, 0o644)


def make(hosts: Iterable[str], valid: timedelta = _VALID) -> tuple[bytes, bytes]:
    """Make a self-signed certificate for hosts and its P-256 key, both PEM.

    It is not a CA certificate: a client that trusts it trusts only this server, not certificates
    that the key might sign.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + valid)
        .add_extension(x509.SubjectAlternativeName(map(_general_name, sorted(hosts))), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )
    cert = builder.sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return cert.public_bytes(serialization.Encoding.PEM), private


def fingerprint(cert: Path) -> str:
    """The SHA-256 fingerprint of a certificate, in the format that browsers show."""
    return _read(cert).fingerprint(hashes.SHA256()).hex(":").upper()


def serial_of(der: bytes) -> int:
    """The serial number of a DER certificate, as received in a handshake."""
    return x509.load_der_x509_certificate(der).serial_number


def _will_do(pair: Pair, hosts: set[str]) -> bool:
    try:
        cert = _read(pair.cert)
        key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    return (
        key.public_key() == cert.public_key()
        and cert.not_valid_after_utc - datetime.now(UTC) > _RENEWED_BEFORE
        and set(map(_general_name, hosts)) <= set(names)
    )


def _read(cert: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(cert.read_bytes())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Replace a file atomically; the new file has its mode from the start."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    new.replace(path)
