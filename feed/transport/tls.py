"""TLS for clients: loads the certificate, and reloads it when its files change."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Final

from tickcast.settings import Settings
from tickcast.wire.errors import InvalidSettings

_VERSION_MIN: Final = ssl.TLSVersion.TLSv1_2

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
