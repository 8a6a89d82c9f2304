"""Rules that a request must meet before it is processed, without a socket."""

from __future__ import annotations

import pytest

from feed.transport.http_messages import (
    BODY_MAX_BYTES,
    HEAD_MAX_BYTES,
    HEADERS_MAX,
    SLICE_BYTES,
    URL_MAX_BYTES,
    Headers,
    RequestRefused,
    check_handshake,
    check_head,
    check_size,
    check_url_size,
)

HOST = (b"host", b"localhost:8000")
LENGTH = (b"content-length", b"3")
CHUNKED = (b"transfer-encoding", b"chunked")


@pytest.mark.parametrize(
    ("version", "headers", "has_body"),
    [
        ("1.1", [HOST], False),
        ("1.0", [], False),
        ("1.1", [HOST, LENGTH], True),
        ("1.1", [HOST, (b"content-length", b"0")], False),
        ("1.1", [HOST, CHUNKED], True),
    ],
)
def test_whether_a_body_follows(version: str, headers: Headers, has_body: bool) -> None:
    assert check_head(b"/", version, headers) == has_body


@pytest.mark.parametrize(
    ("url", "version", "headers", "status"),
    [
        (b"/ ", "1.1", [HOST], 400),
        (b"", "1.1", [HOST], 400),
        (b"/", "1.1", [], 400),
        (b"/", "1.1", [HOST, HOST], 400),
        (b"/", "1.1", [(b"host", b"a b")], 400),
        (b"/", "2.0", [HOST], 505),
        (b"/", "1.1", [HOST, CHUNKED, LENGTH], 400),
        (b"/", "1.0", [CHUNKED], 400),
        (b"/", "1.1", [HOST, (b"content-length", b"%d" % (BODY_MAX_BYTES + 1))], 413),
        (b"/", "1.1", [HOST] * (HEADERS_MAX + 1), 431),
    ],
)
def test_invalid_heads_are_refused(url: bytes, version: str, headers: Headers, status: int) -> None:
    with pytest.raises(RequestRefused) as refusal:
        check_head(url, version, headers)
    assert refusal.value.status == status


def test_sizes() -> None:
    check_url_size(b"a" * URL_MAX_BYTES)
    check_size(HEAD_MAX_BYTES - 1, HEADERS_MAX, in_head=True)
    check_size(BODY_MAX_BYTES + SLICE_BYTES, HEADERS_MAX, in_head=False)
    for size, headers, in_head in (
        (HEAD_MAX_BYTES, 1, True),
        (0, HEADERS_MAX + 1, False),
        (BODY_MAX_BYTES + SLICE_BYTES + 1, 1, False),
    ):
        with pytest.raises(RequestRefused):
            check_size(size, headers, in_head=in_head)
    with pytest.raises(RequestRefused):
        check_url_size(b"a" * (URL_MAX_BYTES + 1))


@pytest.mark.parametrize(
    ("method", "url", "headers", "status"),
    [
        (b"POST", b"/stream", [HOST], 405),
        (b"GET", b"/" * 8192, [HOST], 414),
        (b"GET", b"/stream", [HOST, (b"x", b"a" * 8192)], 431),
    ],
)
def test_invalid_handshakes_are_refused(
    method: bytes, url: bytes, headers: Headers, status: int
) -> None:
    check_handshake(b"GET", b"/stream", [HOST])
    with pytest.raises(RequestRefused) as refusal:
        check_handshake(method, url, headers)
    assert refusal.value.status == status
