"""Verify JSON Web Tokens and read their rights (RFC 7519, RFC 8725). No I/O.

The key determines the algorithm, never the token (RFC 8725, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from msgspec import Struct

from feed.access.entitlements import Entitlements
from feed.access.grant import Grant, Proof
from tickcast.wire.errors import AuthFailed, InvalidSettings

SECRET_MIN_BYTES: Final = 32
_RSA_MIN_BITS: Final = 2048
_SUBJECT_MAX: Final = 128
_CLAIMS: Final = ("feeds", "channels", "symbols")
_BY_CURVE: Final[Mapping[type, str]] = {
    SECP256R1: "ES256",
    SECP384R1: "ES384",
    SECP521R1: "ES512",
}


class VerifyingKey(Struct, frozen=True):
    """A key for verifying tokens, and the algorithms that it may be used with."""

    key: Any
    algorithms: tuple[str, ...]

    def __repr__(self) -> str:
        return f"VerifyingKey({', '.join(self.algorithms)})"


def read_key(content: bytes) -> VerifyingKey:
    """Parse the key in a file: a public key or certificate in PEM, or a shared secret.

    Raises:
        InvalidSettings: the content is neither, or the key is too weak.
    """
    content = content.strip()
    if b"-----BEGIN" not in content:
        if len(content) < SECRET_MIN_BYTES:
            raise InvalidSettings(f"a shared secret has at least {SECRET_MIN_BYTES} bytes")
        return VerifyingKey(content, ("HS256",))
    if b"PRIVATE KEY-----" in content:
        raise InvalidSettings("that is a private key; the server needs the public one")
    try:
        if b"-----BEGIN CERTIFICATE-----" in content:
            return for_public_key(load_pem_x509_certificate(content).public_key())
        return for_public_key(load_pem_public_key(content))
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidSettings("no public key in PEM") from None


def for_public_key(key: object) -> VerifyingKey:
    """Determine the algorithms of a public key.

    Raises:
        InvalidSettings: the key is not RSA from 2048 bits, P-256, P-384, P-521 or Ed25519.
    """
    if isinstance(key, RSAPublicKey) and key.key_size >= _RSA_MIN_BITS:
        return VerifyingKey(key, ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"))
    if isinstance(key, EllipticCurvePublicKey) and type(key.curve) in _BY_CURVE:
        return VerifyingKey(key, (_BY_CURVE[type(key.curve)],))
    if isinstance(key, Ed25519PublicKey):
        return VerifyingKey(key, ("EdDSA",))
    raise InvalidSettings("tokens are signed with RSA from 2048 bits, P-256 to P-521, or Ed25519")


def key_id_of(token: str) -> str | None:
    """Read the `kid` from a token's header. The value is not verified.

    Raises:
        AuthFailed: the text is not a token.
    """
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except jwt.InvalidTokenError:
        raise AuthFailed("no JSON Web Token, nor a secret of ours") from None
    return kid if isinstance(kid, str) else None


def verify_token(
    token: str, key: VerifyingKey, *, audience: str | None = None, issuer: str | None = None
) -> Grant:
    """Verify a token and return the rights that it gives.

    Args:
        audience, issuer: `aud` must contain the audience, and `iss` must be the issuer; None
            accepts any.

    Raises:
        AuthFailed: the token is not signed with the key, has expired, is not valid yet, is meant
            for another audience, comes from another issuer, or has invalid claims.
    """
    required = ["exp", *(["aud"] if audience else []), *(["iss"] if issuer else [])]
    try:
        claims = jwt.decode(
            token,
            key.key,
            algorithms=list(key.algorithms),
            audience=audience,
            issuer=issuer,
            options={"require": required, "verify_aud": audience is not None},
        )
    except jwt.ExpiredSignatureError:
        raise AuthFailed("the token has expired") from None
    except jwt.MissingRequiredClaimError as error:
        raise AuthFailed(f"the token has no {error.claim}") from None
    except jwt.InvalidAudienceError:
        raise AuthFailed("the token is for another audience") from None
    except jwt.InvalidIssuerError:
        raise AuthFailed("the token is from another issuer") from None
    except jwt.ImmatureSignatureError:
        raise AuthFailed("the token is not valid yet") from None
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
        raise AuthFailed("the token is not signed as it must be") from None
    return _grant(claims)


def _grant(claims: Mapping[str, Any]) -> Grant:
    limits = {name: _texts(name, claims[name]) for name in _CLAIMS if name in claims}
    entitlements = Entitlements(**limits)
    for fault in entitlements.faults():
        raise AuthFailed(f"the token's {fault}")
    most = claims.get("max_connections")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise AuthFailed("the token's max_connections is no integer of at least 1")
    # The subject becomes part of a Redis key, which can't contain lone surrogates.
    subject = str(claims.get("sub", ""))[:_SUBJECT_MAX].encode("utf-8", "replace").decode()
    try:
        expires_s = float(claims["exp"])
    except OverflowError:
        raise AuthFailed("the token's exp is no time") from None
    return Grant(Proof.TOKEN, subject, entitlements, most, expires_s)


def _texts(name: str, value: object) -> tuple[str, ...]:
    """Parse a claim that is a list of strings or one comma-separated string."""
    if isinstance(value, str):
        return tuple(each.strip() for each in value.split(",") if each.strip())
    if isinstance(value, Sequence) and all(isinstance(each, str) for each in value):
        return tuple(value)
    raise AuthFailed(f"the token's {name} is no list of texts")
