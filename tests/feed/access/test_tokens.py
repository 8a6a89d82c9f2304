from __future__ import annotations

import base64
import hashlib
import hmac
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding as KeyEncoding
from cryptography.hazmat.primitives.serialization import (
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from feed.access.tokens import read_key, verify_token
from tickcast.wire.errors import AuthFailed, InvalidSettings

SECRET = b"0123456789abcdef0123456789abcdef"
RSA = rsa.generate_private_key(65_537, 2048)


def pem(key: Any) -> bytes:
    public: bytes = key.public_key().public_bytes(
        KeyEncoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    return public


def token(key: Any = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    body = {"sub": "desk", "exp": int(time.time()) + 60} | claims
    return jwt.encode({name: each for name, each in body.items() if each is not None},
                      key, algorithm)  # fmt: skip


@pytest.mark.parametrize(
    ("private", "algorithm"),
    [
        (RSA, "RS256"),
        (RSA, "PS256"),
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
    ],
)
def test_tokens_signed_with_the_private_key_are_accepted(private: Any, algorithm: str) -> None:
    grant = verify_token(token(private, algorithm, symbols=["BTC-*"]), read_key(pem(private)))
    assert grant.subject == "desk"
    assert grant.entitlements.symbols == ("BTC-*",)


def test_tokens_signed_with_the_shared_secret_are_accepted() -> None:
    grant = verify_token(token(feeds="live, demo", max_connections=2), read_key(SECRET + b"\n"))
    assert grant.entitlements.feeds == ("live", "demo")
    assert grant.max_connections == 2


@pytest.mark.parametrize(
    "bad",
    [
        lambda: token(exp=int(time.time()) - 1),
        lambda: token(exp=None),
        lambda: token(exp="soon"),
        lambda: token(key=SECRET[::-1]),
        lambda: token(nbf=int(time.time()) + 60),
        lambda: token(symbols=[1]),
        lambda: token(symbols=["B*C"]),
        lambda: token(channels="all"),
        lambda: token(max_connections=0),
        lambda: token(max_connections=True),
        lambda: jwt.encode({"exp": time.time() + 60}, "", algorithm="none"),
        lambda: "a.b.c",
        lambda: "",
        lambda: token() + "x",
    ],
)
def test_anything_else_is_refused(bad: Any) -> None:
    with pytest.raises(AuthFailed):
        verify_token(bad(), read_key(SECRET))


def test_a_public_key_is_never_taken_for_a_secret() -> None:
    """An attacker with only public data signs the token with the text of the PEM."""
    public = pem(RSA)
    body = token().split(".")[1]
    signed = f"eyJhbGciOiJIUzI1NiJ9.{body}"
    mac = hmac.new(public, signed.encode(), hashlib.sha256).digest()
    forged = f"{signed}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
    with pytest.raises(AuthFailed):
        verify_token(forged, read_key(public))


def test_audience_and_issuer_must_be_the_right_ones() -> None:
    key = read_key(SECRET)
    good = token(aud=["feed", "x"], iss="us")
    assert verify_token(good, key, audience="feed", issuer="us").subject == "desk"
    assert verify_token(good, key).subject == "desk"
    for wrong in ({"aud": "other", "iss": "us"}, {"aud": "feed", "iss": "them"}, {"iss": "us"},
                  {"aud": "feed"}):  # fmt: skip
        with pytest.raises(AuthFailed):
            verify_token(token(**wrong), key, audience="feed", issuer="us")


def test_weak_and_private_keys_are_refused() -> None:
    private = RSA.private_bytes(KeyEncoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    weak = pem(rsa.generate_private_key(65_537, 1024))
    for content in (b"too short", private, weak, b"-----BEGIN PUBLIC KEY-----\nx\n"):
        with pytest.raises(InvalidSettings):
            read_key(content)


def test_a_subject_is_valid_utf_8() -> None:
    grant = verify_token(token(sub="a\ud800b"), read_key(SECRET))
    assert grant.subject == "a?b"


def test_an_infinite_expiry_is_refused() -> None:
    with pytest.raises(AuthFailed):
        verify_token(token(exp=10**400), read_key(SECRET))
