"""TLS: admission, the certificate in use, and what happens to slow clients."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
import warnings
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography import x509

from feed.transport.tls import (
    SELF_SIGNED_HOSTS,
    Certificate,
    CertificateFiles,
    certificate_of,
    load_context,
    make_self_signed,
    provide_self_signed,
    write_self_signed,
)
from tests.builders import trade, trades
from tests.conftest import RunningServer, running_server
from tests.talk import talking
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings, load_settings
from tickcast.wire.errors import InvalidSettings


def trusting(cert: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=cert)


def address(server: RunningServer) -> tuple[str, int]:
    host, _, port = server.http.removeprefix("https://").partition(":")
    return host, int(port)


async def serial_seen(server: RunningServer) -> int:
    """Return the serial number of the certificate that a new connection receives."""
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(*address(server), ssl=anyone)
    der: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der).serial_number


# -- serving


async def test_ticks_and_pages_over_tls(
    secure: Settings, pair: CertificateFiles, redis_url: str, publisher: FeedPublisher
) -> None:
    async with running_server(secure, redis_url) as server:
        context = trusting(pair.cert)
        assert server.stream.startswith("wss://")
        async with talking(server.stream, ssl=context) as talk:
            await talk.ask(action="subscribe", trades=["ES"])
            await publisher.publish(trades(10))
            assert [tick["seq"] for tick in await talk.ticks(10)] == list(range(1, 11))
        async with httpx.AsyncClient(base_url=server.http, verify=context) as client:
            assert (await client.get("/health")).status_code == 200


async def test_nothing_older_than_tls_1_2(
    secure: Settings, pair: CertificateFiles, redis_url: str
) -> None:
    async with running_server(secure, redis_url) as server:
        for version in ("TLSv1_1", "TLSv1_2", "TLSv1_3"):
            context = trusting(pair.cert)
            # By default OpenSSL would not even offer the old version.
            context.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # The old version is deprecated.
                context.minimum_version = ssl.TLSVersion[version]
                context.maximum_version = ssl.TLSVersion[version]
            if version == "TLSv1_1":
                with pytest.raises((ssl.SSLError, ConnectionResetError)):
                    await asyncio.open_connection(*address(server), ssl=context)
                assert refusal_of(load_context(*pair), context) == "UNSUPPORTED_PROTOCOL"
            else:
                _, writer = await asyncio.open_connection(*address(server), ssl=context)
                assert writer.get_extra_info("ssl_object").version() == version.replace("_", ".")
                writer.close()


def refusal_of(server: ssl.SSLContext, client: ssl.SSLContext) -> str | None:
    """Return why a server rejects a client's first message; uvloop does not pass the reason on."""
    incoming = ssl.MemoryBIO()
    incoming.write(client_hello(client))
    connection = server.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    with pytest.raises(ssl.SSLError) as caught:
        connection.do_handshake()
    return caught.value.reason


async def test_plain_http_is_not_served_over_tls(secure: Settings, redis_url: str) -> None:
    async with running_server(secure, redis_url) as server:
        reader, writer = await asyncio.open_connection(*address(server))
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        with closing(writer), suppress(ConnectionResetError):
            assert b"HTTP" not in await reader.read()


def client_hello(context: ssl.SSLContext) -> bytes:
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["nothing", "half a hello", "a hello"])
async def test_a_handshake_that_is_never_finished_ends_in_time(
    secure: Settings, redis_url: str, share: float
) -> None:
    limit_s = 0.3
    impatient = msgspec.structs.replace(secure, handshake_timeout_s=limit_s)
    async with running_server(impatient, redis_url) as server:
        loop = asyncio.get_running_loop()
        hello = client_hello(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        began = loop.time()
        reader, writer = await asyncio.open_connection(*address(server))
        writer.write(hello[: int(len(hello) * share)])
        with closing(writer), suppress(ConnectionResetError):
            async with asyncio.timeout(limit_s + 1):
                while await reader.read(10_000):
                    pass
        assert loop.time() - began > limit_s / 2


# -- slow clients


async def test_a_client_that_never_reads_is_bounded_too(
    secure: Settings, pair: CertificateFiles, redis_url: str, publisher: FeedPublisher
) -> None:
    small = msgspec.structs.replace(secure, outbox_max_bytes=256 * 1024)
    context = trusting(pair.cert)
    async with (
        running_server(small, redis_url) as server,
        talking(server.stream, ssl=context) as good,
    ):
        await good.ask(action="subscribe", trades=["ES"])
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, address(server))
        async with talking(
            server.stream, ssl=context, sock=raw, server_hostname="127.0.0.1", max_queue=1
        ) as deaf:
            await deaf.ask(action="subscribe", trades=["ES"])
            deaf.socket.transport.pause_reading()
            connections = server.server.server_state.connections
            assert len(connections) == 2
            seen = 0
            while len(connections) == 2:
                await publisher.publish(trades(500))
                ticks = await good.ticks(500)
                assert [tick["seq"] for tick in ticks] == list(range(seen + 1, seen + 501))
                seen += 500
            assert (await good.ask(action="ping"))["T"] == "pong"
            deaf.socket.transport.abort()


async def test_a_burst_arrives_whole_over_tls(
    secure: Settings, pair: CertificateFiles, redis_url: str, publisher: FeedPublisher
) -> None:
    roomy = msgspec.structs.replace(secure, outbox_max_bytes=64 * 1024 * 1024)
    async with (
        running_server(roomy, redis_url) as server,
        talking(server.stream, ssl=trusting(pair.cert)) as talk,
    ):
        await talk.ask(action="subscribe", trades=["ES"])
        talk.socket.transport.pause_reading()
        for _ in range(40):
            await publisher.publish(trades(500))
        await publisher.flush()
        talk.socket.transport.resume_reading()
        assert [tick["seq"] for tick in await talk.ticks(20_000)] == list(range(1, 20_001))


# -- files that change


async def test_a_new_certificate_is_for_new_connections(
    secure: Settings, pair: CertificateFiles, redis_url: str, publisher: FeedPublisher
) -> None:
    async with (
        running_server(secure, redis_url) as server,
        talking(server.stream, ssl=trusting(pair.cert)) as old,
    ):
        await old.ask(action="subscribe", trades=["ES"])
        before = await serial_seen(server)
        write_self_signed(pair, SELF_SIGNED_HOSTS)
        async with asyncio.timeout(10):
            while await serial_seen(server) == before:
                await asyncio.sleep(0.05)
        await publisher.publish([trade()])
        assert (await old.ticks(1))[0]["seq"] == 1
        async with talking(server.stream, ssl=trusting(pair.cert)) as new:
            assert (await new.ask(action="ping"))["T"] == "pong"


def look_twice(certificate: Certificate) -> None:
    """Check the files twice: they have settled when the second check finds the same contents."""
    certificate.reload_if_changed()
    certificate.reload_if_changed()


def test_a_mismatched_pair_is_logged_once_and_not_loaded(
    pair: CertificateFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(*pair)
    other = tmp_path / "other"
    other.mkdir()
    new = provide_self_signed(other)
    with caplog.at_level(logging.INFO, "tickcast.tls"):
        shutil.copy(new.cert, pair.cert)
        for _ in range(5):
            certificate.reload_if_changed()
        (line,) = caplog.messages
        assert line == (
            f"the certificate in use stays: tls_key: {pair.key} does not belong to {pair.cert}"
        )
        caplog.clear()
        pair.key.unlink()
        look_twice(certificate)
        assert caplog.messages[0].endswith(f"tls_key: {pair.key}: No such file or directory")
        caplog.clear()
        shutil.copy(new.key, pair.key)
        look_twice(certificate)
        (line,) = caplog.messages
        assert line == f"new connections get the certificate that is in {pair.cert} now"
        look_twice(certificate)
        assert len(caplog.messages) == 1


def test_files_that_are_being_written_are_waited_for(
    pair: CertificateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(*pair)
    whole = pair.cert.read_bytes()
    for size in range(10, len(whole), 100):
        pair.cert.write_bytes(whole[:size])
        certificate.reload_if_changed()
    pair.cert.write_bytes(whole)
    look_twice(certificate)
    assert caplog.messages == []


# -- settings


def test_both_files_or_neither(pair: CertificateFiles) -> None:
    assert certificate_of(load_settings(None, {})) is None
    for name in ("tls_cert", "tls_key"):
        with pytest.raises(InvalidSettings, match="tls_cert and tls_key: give both, or neither"):
            load_settings(None, {}, **{name: str(pair.cert)})


def encrypted(key: Path) -> bytes:
    from cryptography.hazmat.primitives import serialization as forms  # noqa: PLC0415

    loaded: Any = forms.load_pem_private_key(key.read_bytes(), None)
    secret = forms.BestAvailableEncryption(b"secret")
    data: bytes = loaded.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, secret)
    return data


def test_each_mistake_has_its_message(pair: CertificateFiles, tmp_path: Path) -> None:
    cert, key, none = pair.cert, pair.key, tmp_path / "none.pem"
    other, locked, cut = tmp_path / "other.pem", tmp_path / "locked.pem", tmp_path / "cut.pem"
    other.write_bytes(make_self_signed(["x"])[1])
    locked.write_bytes(encrypted(key))
    cut.write_bytes(cert.read_bytes()[:200])
    for files, words in [
        ((none, key), f"tls_cert: {none}: No such file or directory"),
        ((cert, none), f"tls_key: {none}: No such file or directory"),
        ((tmp_path, key), f"tls_cert: {tmp_path}: Is a directory"),
        ((key, key), f"tls_cert: {key} holds no certificate in PEM form"),
        ((cut, key), f"tls_cert: {cut} holds no certificate in PEM form"),
        ((cert, cert), f"tls_key: {cert} holds no private key in PEM form"),
        ((cert, other), f"tls_key: {other} does not belong to {cert}"),
        ((cert, locked), f"tls_key: {locked} is encrypted; decrypt it first"),
    ]:
        with pytest.raises(InvalidSettings) as caught:
            load_context(*files)
        assert str(caught.value) == words
