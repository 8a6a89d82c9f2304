"""Stalled and malformed requests over real sockets: each is answered, and its connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec
import pytest
from starlette.types import Receive, Scope, Send

from feed.transport.http import FeedHttpProtocol
from tests.conftest import RunningServer, until
from tests.feed.transport.test_websocket import serving
from tests.talk import talking
from tickcast.settings import Settings

LIMIT_S = 1.0
SLACK_S = 8.0
"""How late an event may be on a busy machine."""
HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /health HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET /stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
KEY = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
VERSION = b"Sec-WebSocket-Version: 13\r\n"
HANDSHAKE = UPGRADE + KEY + VERSION
CONTROLS = [*range(0x09), *range(0x0B, 0x0D), *range(0x0E, 0x20), 0x7F]

STALLED = {
    "nothing": b"",
    "empty lines": b"\r\n\r\n",
    "one byte": b"G",
    "half a request line": b"GET /hea",
    "half a header": HEAD + b"X-Slow: no",
    "no end of the headers": HEAD + b"\r",
    "no body": POST + b"Content-Length: 10\r\n\r\n",
    "half a body": POST + b"Content-Length: 10\r\n\r\nabc",
    "no chunk": CHUNKED,
    "no last chunk": CHUNKED + b"3\r\nabc\r\n",
}

REFUSED = {
    # Too much data, with no end in sight.
    "20 KB in one header": (HEAD + b"X: " + b"a" * 20_000, 431),
    "20 KB in a header's name": (HEAD + b"X" * 20_000, 431),
    "20 KB of spaces": (HEAD + b"X:" + b" " * 20_000, 431),
    "500 headers": (HEAD + b"a: b\r\n" * 500, 431),
    "101 headers": (HEAD + b"a: b\r\n" * 100 + b"\r\n", 431),
    "a long URL": (b"GET /" + b"a" * 9000, 414),
    "a body of 65,537 bytes": (POST + b"Content-Length: 65537\r\n\r\n", 413),
    "endless chunks": (CHUNKED + b"1000\r\n%b\r\n" % (b"a" * 4096) * 20, 413),
    "an endless chunk": (CHUNKED + b"ffffff\r\n" + b"a" * 70_000, 413),
    "an endless extension": (CHUNKED + b"1;" + b"a" * 70_000, 413),
    "endless trailers": (CHUNKED + b"0\r\n" + b"a: b\r\n" * 12_000, 431),
    "an endless trailer": (CHUNKED + b"0\r\na: " + b"b" * 70_000, 413),
    # Ambiguous host or message length (RFC 9112, sections 3.2 and 6.3).
    "two hosts": (HEAD + b"Host: y\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "no name of a host": (b"GET /health HTTP/1.1\r\nHost: x/y\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    "length and coding": (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "coding and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400),
    "coding in HTTP/1.0": (CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n", 400),
    "an unknown coding": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 400),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "a length beyond counting": (POST + b"Content-Length: %b\r\n\r\n" % (b"9" * 40), 400),
    "a body behind an upgrade": (
        POST + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nabc", 400,
    ),
    "an expectation": (POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n", 417),
    # Nonsense
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "no method": (b"DANCE / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no version": (b"GET /health\r\n\r\n", 505),
    "another version": (b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a tunnel": (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no path": (b"GET ?a HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a path beyond ASCII": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a folded header": (HEAD + b"X: a\r\n b\r\n\r\n", 400),
    "a bare line feed": (HEAD + b"X: a\nY: b\r\n\r\n", 400),
    "a bare carriage return": (HEAD + b"X: a\rY: b\r\n\r\n", 400),
    "a space before the colon": (HEAD + b"X : a\r\n\r\n", 400),
    "no colon": (HEAD + b"X\r\n\r\n", 400),
    # WebSocket handshakes (RFC 6455, sections 4.2.2 and 4.4)
    "version 8": (UPGRADE + KEY + b"Sec-WebSocket-Version: 8\r\n\r\n", 426),
    "versions 13 and 8": (UPGRADE + KEY + b"Sec-WebSocket-Version: 13, 8\r\n\r\n", 426),
    "no WebSocket version": (UPGRADE + KEY + b"\r\n", 426),
    "two WebSocket versions": (HANDSHAKE + VERSION + b"\r\n", 426),
    "no key": (UPGRADE + VERSION + b"\r\n", 400),
    "two keys": (HANDSHAKE + KEY + b"\r\n", 400),
    "a short key": (UPGRADE + VERSION + b"Sec-WebSocket-Key: AAAA\r\n\r\n", 400),
    "no base64": (UPGRADE + VERSION + b"Sec-WebSocket-Key: ????\r\n\r\n", 400),
    "a key beyond ASCII": (UPGRADE + VERSION + b"Sec-WebSocket-Key: \xff\r\n\r\n", 400),
    "a subprotocol beyond ASCII": (HANDSHAKE + b"Sec-WebSocket-Protocol: \xff\r\n\r\n", 400),
    "a handshake by POST": (b"POST" + HANDSHAKE[3:] + b"\r\n", 405),
    "a handshake with a body": (HANDSHAKE + b"Content-Length: 3\r\n\r\nabc", 400),
    "a handshake in chunks": (HANDSHAKE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a handshake's long line": (HANDSHAKE + b"Cookie: " + b"a" * 8192 + b"\r\n\r\n", 431),
    "a handshake's long URL": (
        HANDSHAKE.replace(b"/stream", b"/stream?" + b"a" * 8180) + b"\r\n", 414,
    ),
    "a handshake in HTTP/1.0": (HANDSHAKE.replace(b"1.1", b"1.0") + b"\r\n", 426),
}  # fmt: skip

SERVED = {
    "the least": (HEAD + b"\r\n", 200),
    "HTTP/1.0 without a host": (b"GET /health HTTP/1.0\r\n\r\n", 200),
    "an absolute URL": (b"GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "100 headers": (HEAD + b"a: b\r\n" * 99 + b"\r\n", 200),
    "15 KB of headers": (HEAD + b"Cookie: %b\r\n" % (b"a" * 15_000) + b"\r\n", 200),
    "8 KB of URL": (HEAD.replace(b"/health", b"/health?" + b"a" * 8184) + b"\r\n", 200),
    "a tab, and text beyond ASCII": (HEAD + b"X: a\tb \xff\r\n\r\n", 200),
    "a body": (HEAD + b"Content-Length: 3\r\n\r\nabc", 200),
    "64 KiB of body": (HEAD + b"Content-Length: 65536\r\n\r\n" + b"a" * 65_536, 200),
    "chunks and a trailer": (CHUNKED + b"3\r\nabc\r\n0\r\nHost: y\r\n\r\n", 405),
    "another upgrade": (HEAD + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n", 200),
    "a handshake": (HANDSHAKE + b"\r\n", 101),
    "a handshake with 8 KB of URL": (
        HANDSHAKE.replace(b"/stream", b"/stream?" + b"a" * 8160) + b"\r\n", 101,
    ),
    "a handshake with no body, and saying so": (HANDSHAKE + b"Content-Length: 0\r\n\r\n", 101),
}  # fmt: skip


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, handshake_timeout_s=LIMIT_S)


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def dialled(url: str, limit: int = 65_536) -> AsyncIterator[Stream]:
    port = int(url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def until_closed(server: RunningServer, request: bytes) -> bytes:
    """Return everything that the server sends before it closes the connection."""
    async with dialled(server.http) as (reader, writer), asyncio.timeout(10):
        writer.write(request)
        return await reader.read()


async def first_status(server: RunningServer, request: bytes) -> int:
    async with dialled(server.http) as (reader, writer), asyncio.timeout(10):
        writer.write(request)
        return status_of(await reader.readline())


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def answer_to_next(stream: Stream, request: bytes) -> bytes:
    """Return the answer to a request on a connection that stays open."""
    reader, writer = stream
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = (
        int(line.partition(b":")[2])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )
    await reader.readexactly(length)
    return head


# ------------------------------------------------------------------------------------- answers


async def test_malformed_and_oversized_requests_are_refused_once(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tickcast")
    names = list(REFUSED)
    answers = await asyncio.gather(*(until_closed(server, REFUSED[name][0]) for name in names))
    found = {name: status_of(answer) for name, answer in zip(names, answers, strict=True)}
    assert found == {name: status for name, (_, status) in REFUSED.items()}
    for name, answer in zip(names, answers, strict=True):
        assert answer.count(b"HTTP/1.1") == 1, name
        assert b"connection: close\r\n" in answer.lower(), name
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
    for record in caplog.records:
        assert record.exc_info is None
        assert record.getMessage().isascii()
        assert record.getMessage().isprintable()
    await until(lambda: not server.server.server_state.connections)


async def test_unusual_but_valid_requests_are_served(server: RunningServer) -> None:
    found = {name: await first_status(server, request) for name, (request, _) in SERVED.items()}
    assert found == {name: status for name, (_, status) in SERVED.items()}


async def test_no_control_character_passes(server: RunningServer) -> None:
    requests = [
        request % bytes((code,))
        for request in (
            b"GET /health?%b HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n",
            HEAD + b"X: a%bb\r\n\r\n",
            HANDSHAKE + b"X: a%bb\r\n\r\n",
        )
        for code in CONTROLS
        if not (code == 0x09 and b"X:" in request)
    ]
    answers = await asyncio.gather(*(until_closed(server, request) for request in requests))
    assert {status_of(answer) for answer in answers} == {400}


async def test_a_refused_handshake_names_the_supported_version_and_method(
    server: RunningServer,
) -> None:
    answer = await until_closed(server, REFUSED["version 8"][0])
    assert b"\r\nsec-websocket-version: 13\r\n" in answer.lower()
    answer = await until_closed(server, REFUSED["a handshake by POST"][0])
    assert b"\r\nallow: GET\r\n" in answer


async def test_a_refusal_follows_earlier_responses(server: RunningServer) -> None:
    answer = await until_closed(server, (HEAD + b"\r\n") * 3 + b"\0")
    statuses = [status_of(b"HTTP/1.1" + part) for part in answer.split(b"HTTP/1.1")[1:]]
    assert statuses == [200, 200, 200, 400]


async def test_a_handshake_does_not_overtake_a_response(server: RunningServer) -> None:
    answer = await until_closed(server, HEAD + b"\r\n" + HANDSHAKE + b"\r\n")
    statuses = [status_of(b"HTTP/1.1" + part) for part in answer.split(b"HTTP/1.1")[1:]]
    assert statuses == [200, 400]


async def test_data_after_an_unknown_upgrade_is_a_request(server: RunningServer) -> None:
    first = HEAD + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
    answer = await until_closed(server, first + HEAD + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 2


async def test_memory_does_not_grow_with_bodies(server: RunningServer) -> None:
    async def send() -> None:
        chunk = b"8000\r\n" + b"a" * 0x8000 + b"\r\n"
        async with dialled(server.http) as (reader, writer):
            writer.write(CHUNKED)
            with contextlib.suppress(OSError):
                for _ in range(200):
                    writer.write(chunk)
                    await writer.drain()
            assert b" 413 " in await reader.readline()

    for _ in range(3):
        await send()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(30):
        await send()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KB


async def test_an_upgrade_leaves_nothing_of_the_http_protocol(server: RunningServer) -> None:
    gc.collect()
    gc.disable()
    try:
        async with talking(server.stream):
            assert not any(isinstance(each, FeedHttpProtocol) for each in gc.get_objects())
    finally:
        gc.enable()


# ---------------------------------------------------------------------------------------- time


async def test_stalled_requests_get_408_and_are_closed(server: RunningServer) -> None:
    async def stall(request: bytes) -> tuple[int | None, float]:
        began_s = asyncio.get_running_loop().time()
        answer = await until_closed(server, request)
        assert not answer or b"\r\nconnection: close\r\n" in answer
        took_s = asyncio.get_running_loop().time() - began_s
        return (status_of(answer) if answer else None), took_s

    found = await asyncio.gather(*(stall(request) for request in STALLED.values()))
    statuses = dict(zip(STALLED, (status for status, _ in found), strict=True))
    silent = ("nothing", "empty lines")
    assert statuses == {name: None if name in silent else 408 for name in STALLED}
    assert max(took_s for _, took_s in found) < LIMIT_S + SLACK_S
    await until(lambda: not server.server.server_state.connections)


async def test_each_request_has_its_own_time_limit(server: RunningServer) -> None:
    loop = asyncio.get_running_loop()
    async with dialled(server.http) as stream, asyncio.timeout(10):
        began_s = loop.time()
        while loop.time() - began_s < 1.5 * LIMIT_S:
            stream[1].write(HEAD)
            await asyncio.sleep(LIMIT_S / 3)
            assert b" 200 " in await answer_to_next(stream, b"\r\n")
        stalled_s = loop.time()
        stream[1].write(HEAD)
        assert status_of(await stream[0].read()) == 408
        assert loop.time() - stalled_s < LIMIT_S + SLACK_S


async def test_shutdown_does_not_wait_for_stalled_requests(server: RunningServer) -> None:
    async with dialled(server.http) as (reader, writer):
        writer.write(STALLED["no body"])
        await until(lambda: server.server.server_state.connections)
        server.server.should_exit = True
        assert await reader.read() == b""


async def test_empty_lines_keep_no_connection(server: RunningServer) -> None:
    async with dialled(server.http) as stream, asyncio.timeout(10):
        await answer_to_next(stream, HEAD + b"\r\n")
        assert await asyncio.wait_for(drip(stream, lambda: b"\r\n"), 2 * LIMIT_S + SLACK_S) == b""


async def drip(stream: Stream, next_byte: Callable[[], bytes]) -> bytes:
    """Send a few bytes at intervals until the connection ends; return the response."""
    reader, writer = stream
    answer = asyncio.create_task(reader.read())
    while not answer.done():
        if not writer.is_closing():
            writer.write(next_byte())
        await asyncio.wait([answer], timeout=0.1)
    return await answer


async def big_answers(scope: Scope, receive: Receive, send: Send) -> None:
    """An application whose responses all exceed the kernel's buffers."""
    await receive()
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    headers = [(b"content-length", b"8000000")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(8_000_000)})


@pytest.mark.parametrize("reads", [False, True])
async def test_a_response_may_take_long_while_it_is_read(settings: Settings, reads: bool) -> None:
    quick = msgspec.structs.replace(settings, handshake_timeout_s=0.5)
    async with (
        serving(big_answers, quick) as (server, url),
        dialled(url, limit=1024) as (reader, writer),
        asyncio.timeout(20),
    ):
        writer.write(HEAD + b"\r\n")
        assert b" 200 " in await reader.readline()
        connections = server.server_state.connections
        if not reads:
            await until(lambda: not connections)
            return
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(8):
            assert connections
            await reader.readexactly(1_000_000)
            await asyncio.sleep(0.2)


KINDS = ("nothing", "half a request line", "half a header", "dripped", "no body")


async def stalled_for(server: RunningServer, kind: str, opened: list[None]) -> float:
    """Return how long one stalled connection lasts, in seconds; note in `opened` that it began."""
    began_s = asyncio.get_running_loop().time()
    with contextlib.suppress(ConnectionError):
        async with dialled(server.http) as stream:
            opened.append(None)
            if kind == "dripped":
                stream[1].write(HEAD + b"X-Slow: ")
                await drip(stream, lambda: b"a")
            else:
                stream[1].write(STALLED[kind])
                await stream[0].read()
    return asyncio.get_running_loop().time() - began_s


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", KINDS)
async def test_five_hundred_stalled_sockets_are_closed_without_delaying_others(
    server: RunningServer, kind: str
) -> None:
    loop = asyncio.get_running_loop()
    connections = server.server.server_state.connections
    with many_files():
        opened: list[None] = []
        stalled = [asyncio.create_task(stalled_for(server, kind, opened)) for _ in range(500)]
        await until(lambda: len(opened) == 500)
        began_s = loop.time()
        async with talking(server.stream) as good:
            assert (await good.ask(action="ping"))["T"] == "pong"
            assert loop.time() - began_s < SLACK_S
            assert max(await asyncio.gather(*stalled)) < LIMIT_S + SLACK_S
            assert (await good.ask(action="ping"))["T"] == "pong"
        await until(lambda: not connections)
