from __future__ import annotations

import pytest

from tickcast.wire.addresses import is_allowed_origin, is_loopback, is_origin_pattern


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (
            "https://example.org",
            ["https://example.org", "https://example.org:443"],
            ["http://example.org", "https://example.org:444", "https://a.example.org", "null"],
        ),
        (
            "https://*.example.org",
            ["https://a.example.org", "https://a.b.example.org", "https://a.example.org:443"],
            [
                *("https://example.org", "http://a.example.org", "https://a.example.org:444"),
                *("https://aexample.org", "https://a.example.org.evil.net", "https://.example.org"),
            ],
        ),
        (
            "http://*.example.org:8080",
            ["http://a.example.org:8080"],
            ["http://a.example.org", "http://example.org:8080"],
        ),
        ("https://Example.ORG", ["https://example.org"], []),
    ],
)
def test_patterns_of_origins(pattern: str, matching: list[str], others: list[str]) -> None:
    assert is_origin_pattern(pattern)
    for origin in matching:
        assert is_allowed_origin(origin, "wss", "own.example", [pattern]), origin
    for origin in others:
        assert not is_allowed_origin(origin, "wss", "own.example", [pattern]), origin


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "*", "null", "example.org", "https://", "https://*", "https://*.", "https://*.org"),
        *("https://*.127.0.0.1", "https://a.*.org", "https://a*.example.org", "*://example.org"),
        *("https://example.org/", "https://example.org/*", "https://me@example.org", "ws://a.org"),
        *("https://exämple.org", "https://exa mple.org", "https://example.org:99999", "*.a.org"),
        *("https://*.example.org/", "https://*.*.example.org"),
    ],
)
def test_patterns_that_can_never_match_are_invalid(pattern: str) -> None:
    assert not is_origin_pattern(pattern)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST.", "a.localhost", "127.0.0.1")),
        *((host, True) for host in ("127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::")),
        *((host, False) for host in ("localhost.example.org", "10.0.0.1", "::ffff:10.0.0.1", "")),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
