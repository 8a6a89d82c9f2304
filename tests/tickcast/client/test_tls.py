"""The client library against servers that it should trust, and servers that it should not."""

from __future__ import annotations

import logging
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from feed.transport.tls import (
    SELF_SIGNED_HOSTS,
    CertificateFiles,
    make_self_signed,
    provide_self_signed,
    write_self_signed,
)
from tests.builders import trade
from tests.conftest import running_server, until
from tickcast import connect
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.wire.errors import ConnectionFailed, InvalidSettings


@pytest.mark.parametrize(
    "form",
    [Path, str, lambda cert: ssl.create_default_context(cafile=cert)],
    ids=["path", "text", "context"],
)
async def test_a_trusted_certificate(
    secure: Settings, pair: CertificateFiles, redis_url: str, publisher: FeedPublisher, form: Any
) -> None:
    async with (
        running_server(secure, redis_url) as server,
        connect(server.stream, tls=form(pair.cert)) as stream,
    ):
        await stream.subscribe(trades=["ES"])
        await publisher.publish([trade()])
        assert (await anext(stream)).seq == 1


async def test_an_untrusted_certificate_has_a_hint(
    secure: Settings, tmp_path: Path, redis_url: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    async with running_server(secure, redis_url) as server:
        for tls in (None, provide_self_signed(other).cert):
            with pytest.raises(ConnectionFailed) as caught:
                async with connect(server.stream, tls=tls):
                    pass
            words = str(caught.value)
            assert words.startswith(f"{server.stream}: the server's certificate is not trusted: ")
            assert "--ca" in words


async def test_a_certificate_for_another_name(
    secure: Settings, tmp_path: Path, pair: CertificateFiles, redis_url: str
) -> None:
    cert, key = make_self_signed(["elsewhere.example"])
    pair.cert.write_bytes(cert)
    pair.key.write_bytes(key)
    async with running_server(secure, redis_url) as server:
        with pytest.raises(ConnectionFailed, match=r"not trusted: IP address mismatch") as caught:
            async with connect(server.stream, tls=pair.cert):
                pass
        assert "--ca" not in str(caught.value)


async def test_it_reconnects_once_the_certificate_is_valid_again(
    secure: Settings,
    pair: CertificateFiles,
    redis_url: str,
    publisher: FeedPublisher,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tickcast.client")
    right = [each.read_bytes() for each in pair]
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(right[0])
    async with AsyncExitStack() as stack:
        async with running_server(secure, redis_url) as server:
            port = int(server.http.rpartition(":")[2])
            stream = await stack.enter_async_context(connect(server.stream, tls=trusted))
            await stream.subscribe(trades=["ES"])
        write_self_signed(pair, SELF_SIGNED_HOSTS)
        async with running_server(secure, redis_url, port):
            await until(lambda: "is not trusted" in caplog.text)
        for file, data in zip(pair, right, strict=True):
            file.write_bytes(data)
        async with running_server(secure, redis_url, port):
            await until(lambda: stream.connected)
            await publisher.publish([trade()])
            assert (await anext(stream)).seq == 1


@pytest.mark.parametrize("content", [None, b"", b"no PEM"])
async def test_an_unusable_certificate_file(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidSettings, match=f"{file}"):
        async with connect("wss://127.0.0.1:1/stream", tls=file):
            pass
