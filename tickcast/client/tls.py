"""Verification of wss:// servers, which can't be turned off."""

from __future__ import annotations

import os
import ssl
from typing import Final

from tickcast.wire.errors import InvalidSettings

_UNKNOWN_ISSUERS: Final = frozenset((2, 18, 19, 20, 21))
"""OpenSSL's codes (x509_vfy.h) for certificates or chains without a trusted issuer."""


def verifying_context(ca: str | os.PathLike[str] | None = None) -> ssl.SSLContext:
    """Create a context that trusts the system's authorities, or the certificates in a file.

    Args:
        ca: PEM file of certificates to trust: an authority's or a self-signed server's.

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
    """Describe what went wrong and, where known, how to fix it."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
    words = f"the server's certificate is not trusted: {error.verify_message}"
    if error.verify_code in _UNKNOWN_ISSUERS:
        words += "; to trust it or its CA, name the file with --ca (in a program: tls=)"
    return words
