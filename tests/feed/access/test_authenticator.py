"""The gate with an issuer that answers nothing, or nonsense: a client with a key is admitted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import jwt
import pytest

from feed.access.authenticator import Authenticator
from feed.access.key_file import add_key
from feed.access.keys import Key, hash_secret, make_key_id, make_secret
from tests.conftest import until
from tickcast.settings import Settings
from tickcast.wire.actions import BearerToken
from tickcast.wire.errors import AuthFailed

ID = make_key_id()
SECRET = make_secret(ID)
TOKEN = jwt.encode({"exp": time.time() + 600}, "s" * 32, "HS256", headers={"kid": "made-up"})


@asynccontextmanager
async def issuer(answer: Callable[[asyncio.StreamWriter], None]) -> AsyncIterator[str]:
    """Call `answer` at once for each connection, and keep the connection open."""
    writers: list[asyncio.StreamWriter] = []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        answer(writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
    finally:
        for writer in writers:
            writer.close()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def gate_with(directory: Path, url: str) -> AsyncIterator[Authenticator]:
    keys = directory / "keys.toml"
    add_key(keys, ID, Key(name="desk", hash=hash_secret(SECRET)))
    gate = Authenticator(Settings(auth=str(keys), jwks_url=url))
    try:
        yield gate
    finally:
        gate.shut_down()


async def test_an_unresponsive_issuer_does_not_delay_api_keys(tmp_path: Path) -> None:
    asked: list[asyncio.StreamWriter] = []
    async with issuer(asked.append) as url, gate_with(tmp_path, url) as gate:
        token = asyncio.create_task(gate.authenticate(BearerToken(TOKEN)))
        await until(lambda: asked)
        grant = await gate.authenticate(BearerToken(SECRET))
        assert grant.subject == ID
        assert not token.done(), "the issuer has not answered yet"
        asked[0].close()
        with pytest.raises(AuthFailed):
            await token


@pytest.mark.parametrize(
    "body",
    [
        b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"keys\": 5}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"keys\": [[1]]}",
    ],
)  # fmt: skip
async def test_invalid_answers_of_an_issuer_are_logged(
    tmp_path: Path, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(body)
        writer.close()

    async with issuer(answer) as url, gate_with(tmp_path, url) as gate:
        with pytest.raises(AuthFailed):
            await gate.authenticate(BearerToken(TOKEN))
    assert "can't fetch the keys of tokens" in caplog.text
