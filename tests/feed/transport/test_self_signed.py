"""Self-signed certificates: their contents, and when they are kept or renewed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from feed.transport.tls import (
    SELF_SIGNED_HOSTS,
    CertificateFiles,
    fingerprint,
    make_self_signed,
    provide_self_signed,
)


def serial(pair: CertificateFiles) -> int:
    return x509.load_pem_x509_certificate(pair.cert.read_bytes()).serial_number


def test_a_self_signed_certificate_names_the_hosts(tmp_path: Path) -> None:
    pair = provide_self_signed(tmp_path, ["10.0.0.7", "feed.example"])
    cert = x509.load_pem_x509_certificate(pair.cert.read_bytes())
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", "feed.example"}
    addresses = {str(each) for each in names.get_values_for_type(x509.IPAddress)}
    assert addresses == {"127.0.0.1", "::1", "10.0.0.7"}
    assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    lasts = cert.not_valid_after_utc - cert.not_valid_before_utc
    assert timedelta(days=30) <= lasts < timedelta(days=31)
    assert pair.key.stat().st_mode & 0o777 == 0o600
    assert sorted(tmp_path.iterdir()) == sorted(pair)


def test_a_suitable_certificate_is_reused(tmp_path: Path) -> None:
    first = serial(provide_self_signed(tmp_path, ["10.0.0.7"]))
    assert serial(provide_self_signed(tmp_path)) == first
    assert serial(provide_self_signed(tmp_path, ["10.0.0.7"])) == first
    assert serial(provide_self_signed(tmp_path, ["10.0.0.8"])) != first


@pytest.mark.parametrize(("days", "kept"), [(2.9, False), (3.1, True)])
def test_a_certificate_is_renewed_before_it_expires(
    tmp_path: Path, days: float, kept: bool
) -> None:
    pair = provide_self_signed(tmp_path)
    cert, key = make_self_signed(SELF_SIGNED_HOSTS, timedelta(days=days))
    pair.cert.write_bytes(cert)
    pair.key.write_bytes(key)
    before = serial(pair)
    assert (serial(provide_self_signed(tmp_path)) == before) is kept


@pytest.mark.parametrize("broken", ["cert", "key"])
@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nx\n"])
def test_a_broken_pair_is_replaced(tmp_path: Path, broken: str, content: bytes | None) -> None:
    pair = provide_self_signed(tmp_path)
    file: Path = getattr(pair, broken)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    pair = provide_self_signed(tmp_path)
    assert fingerprint(pair.cert)
    assert pair.key.stat().st_mode & 0o777 == 0o600


def test_a_key_of_another_certificate_is_replaced(tmp_path: Path) -> None:
    pair = provide_self_signed(tmp_path)
    before = serial(pair)
    pair.key.write_bytes(make_self_signed(["x"])[1])
    assert serial(provide_self_signed(tmp_path)) != before
