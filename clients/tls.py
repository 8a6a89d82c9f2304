"""How wss:// servers are verified: always, there is no way around it."""

from __future__ import annotations

import os
import ssl
from typing import Final

from feed.errors import InvalidSettings

_UNKNOWN_ISSUERS: Final = frozenset((2, 18, 19, 20, 21))
"""OpenSSL's codes (x509_vfy.h) of certificates, or chains, that lead to nobody who is trusted."""


def verifying_context(ca: str | os.PathLike[str] | None = None) -> ssl.SSLContext:
    """A context that trusts the authorities of the system, or those of a file instead.

    Args:
        ca: PEM file of certificates to trust: an authority's, or a server's that is self-signed.

    Raises:
        InvalidSettings: the file can't be used.
    """
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise InvalidSettings(f"{ca} holds no certificate in PEM form") from None
    except OSError as error:
        raise InvalidSettings(f"{ca}: {error.strerror}") from None


def why_refused(error: ssl.SSLError) -> str:
    """What went wrong, and how to mend it where that can be told."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
    words = f"the server's certificate is not trusted: {error.verify_message}"
    if error.verify_code in _UNKNOWN_ISSUERS:
        words += "; to trust it or its CA, name the file with --ca (in a program: tls=)"
    return words
