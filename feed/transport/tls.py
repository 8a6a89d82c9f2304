"""TLS for clients: loads and reloads a certificate, or makes one for trying TLS out."""

from __future__ import annotations

import ipaddress
import logging
import os
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tickcast.settings import Settings
from tickcast.wire.errors import InvalidSettings

_VERSION_MIN: Final = ssl.TLSVersion.TLSv1_2

# Hosts that every self-signed certificate is valid for.
SELF_SIGNED_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
_SELF_SIGNED_FOR: Final = timedelta(days=30)
_RENEWED_BEFORE: Final = timedelta(days=3)
_CLOCK_TOLERANCE: Final = timedelta(minutes=5)
_COMMON_NAME: Final = "Tickcast, self-signed"

_Stamp = tuple[int, int, int] | None

logger = logging.getLogger("tickcast.tls")


class Certificate:
    """The certificate for new connections: the latest valid one that the files contained.

    Each context is loaded completely before it takes effect and is never changed afterwards.
    Loading into a context in use would read the files again, and could leave it with a certificate
    and a key that do not match. Instead, each handshake that begins in `context` is switched to the
    latest context.

    Args:
        cert: PEM file of the certificate and its chain, without the root.
        key: PEM file of the private key, not encrypted; may be the same file.

    Attributes:
        context: the context to pass to listeners.

    Raises:
        InvalidSettings: the files are not a valid pair.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        self._seen = self._tried = self._stamps()
        self.context = self._latest = load_context(cert, key)
        self.context.sni_callback = self._lead_on

    def reload_if_changed(self) -> None:
        """Check whether the files have changed, and load them if they are valid.

        A file that has just changed may still be being written, so the files are read only after
        they have stayed the same from one call to the next. Each version is tried once.
        """
        stamps = self._stamps()
        is_settled = stamps == self._seen
        self._seen = stamps
        if not is_settled or stamps == self._tried:
            return
        self._tried = stamps
        try:
            self._latest = load_context(self._cert, self._key)
        except InvalidSettings as error:
            logger.warning("the certificate in use stays: %s", error)
        else:
            logger.info("new connections get the certificate that is in %s now", self._cert)

    def _lead_on(
        self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> None:
        # OpenSSL calls this for every ClientHello, even one without a server name.
        connection.context = self._latest

    def _stamps(self) -> tuple[_Stamp, _Stamp]:
        return _stamp(self._cert), _stamp(self._key)


def certificate_of(settings: Settings) -> Certificate | None:
    """Load the configured certificate; return None if TLS is not configured.

    Raises:
        InvalidSettings: it can't be used.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Certificate(Path(settings.tls_cert), Path(settings.tls_key))


def _stamp(path: Path) -> _Stamp:
    """A value that changes with the file; follows links, because a link may be replaced instead."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def load_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Create a server context with a certificate and key, for TLS 1.2 and later.

    Raises:
        InvalidSettings: a file can't be read or has the wrong content; the message says which.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSION_MIN
    context.options |= ssl.OP_NO_RENEGOTIATION
    _check_certificate(cert)
    _check_readable("tls_key", key)
    try:
        # Without a callback, OpenSSL would prompt for a password on the terminal.
        context.load_cert_chain(cert, key, password=_refuse_to_decrypt)
    except _Encrypted:
        raise InvalidSettings(f"tls_key: {key} is encrypted; decrypt it first") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidSettings(f"tls_key: {key} does not belong to {cert}") from None
        if error.reason in {None, "PEM_LIB", "NO_START_LINE"}:
            raise InvalidSettings(f"tls_key: {key} holds no private key in PEM form") from None
        raise InvalidSettings(f"tls_cert: {cert}: {_words(error)}") from None
    except OSError as error:
        raise InvalidSettings(f"tls_key: {key}: {error.strerror}") from None
    return context


def _check_certificate(cert: Path) -> None:
    # `load_cert_chain` reports the same errors for both files, so check this one first.
    _check_readable("tls_cert", cert)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cert)
    except ssl.SSLError:
        raise InvalidSettings(f"tls_cert: {cert} holds no certificate in PEM form") from None


def _check_readable(name: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise InvalidSettings(f"{name}: {path}: {error.strerror}") from None


class _Encrypted(Exception):
    pass


def _refuse_to_decrypt() -> str:
    raise _Encrypted


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


# -- self-signed certificates, for trying out TLS


class CertificateFiles(NamedTuple):
    """The files of a certificate and of its private key, both PEM."""

    cert: Path
    key: Path


def provide_self_signed(directory: Path, hosts: Iterable[str] = ()) -> CertificateFiles:
    """Return the pair in a directory, creating a new one if there is no suitable one.

    The pair is renewed three days before it expires, or if it is not valid for one of the hosts.

    Args:
        directory: must exist and be writable by this user only.
        hosts: names and addresses that it must be valid for, besides `SELF_SIGNED_HOSTS`.

    Raises:
        OSError: the files can't be written.
    """
    files = CertificateFiles(directory / "demo-cert.pem", directory / "demo-key.pem")
    wanted = {*SELF_SIGNED_HOSTS, *hosts}
    if not _are_usable(files, wanted):
        write_self_signed(files, wanted)
    return files


def write_self_signed(files: CertificateFiles, hosts: Iterable[str]) -> None:
    """Make a new certificate and key and write them; only this user can read the key.

    Raises:
        OSError: the files can't be written.
    """
    cert, key = make_self_signed(hosts)
    # The key comes first. Until the certificate follows, a reader finds a mismatched pair and
    # waits.
    _replace(files.key, key, 0o600)
    _replace(files.cert, cert, 0o644)


def make_self_signed(
    hosts: Iterable[str], valid: timedelta = _SELF_SIGNED_FOR
) -> tuple[bytes, bytes]:
    """Make a self-signed certificate for hosts and its P-256 key, both PEM.

    It is not a CA certificate: a client that trusts it trusts only this server, not certificates
    that the key might sign.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _COMMON_NAME)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_TOLERANCE)
        .not_valid_after(now + valid)
        .add_extension(x509.SubjectAlternativeName(map(_general_name, sorted(hosts))), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )
    cert = builder.sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return cert.public_bytes(serialization.Encoding.PEM), private


def fingerprint(cert: Path) -> str:
    """The SHA-256 fingerprint of a certificate, in the format that browsers show."""
    return _read_certificate(cert).fingerprint(hashes.SHA256()).hex(":").upper()


def _are_usable(files: CertificateFiles, hosts: set[str]) -> bool:
    try:
        cert = _read_certificate(files.cert)
        key = serialization.load_pem_private_key(files.key.read_bytes(), None)
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    return (
        key.public_key() == cert.public_key()
        and cert.not_valid_after_utc - datetime.now(UTC) > _RENEWED_BEFORE
        and set(map(_general_name, hosts)) <= set(names)
    )


def _read_certificate(cert: Path) -> x509.Certificate:
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
