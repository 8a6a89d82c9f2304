"""The parts of one test: a store, a server, a publisher, clients. All of them end with the test."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from tests.faults import returning
from tests.faults.accounts import Sums
from tests.faults.auditor import Auditor
from tests.faults.children import Child, plain_environment
from tests.faults.crowd import Crowd
from tests.faults.follower import Follower
from tests.faults.proxy import Proxy, running_proxy
from tests.faults.serving import ServerProcess
from tests.faults.source import Source
from tests.faults.valkey import Valkey, our_client
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.encoding import Encoding
from tickcast.wire.ticks import DEFAULT_FEED

RESUMES_WITHIN_S = 3.0
"""From the end of a fault to the first new tick at every client."""


class Runs(Protocol):
    """Something that runs in the background."""

    async def run(self) -> None: ...


class Client(Runs, Protocol):
    """A client, of either kind."""

    @property
    def live(self) -> bool: ...
    @property
    def sums(self) -> Sums: ...
    @property
    def reconnects(self) -> int: ...
    def has(self, symbol: str, id_: int) -> bool: ...


R = TypeVar("R", bound=Runs)


class Scene:
    """Start the parts of a test, and end them.

    A failure in the background fails the test as soon as it waits for something.

    Args:
        directory: for all files of the parts.
        settings: of the server and of the publisher.
    """

    # Time limits are those of an idle machine, and are multiplied by this.
    patience = 1.0

    def __init__(self, directory: Path, **settings: Any) -> None:
        self._directory = directory
        self._settings = settings
        self._stack = AsyncExitStack()
        self._tasks: dict[Runs, asyncio.Task[None]] = {}
        self._children: list[Child] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await cancel_and_wait(self._tasks.values())
        if error is not None:
            for child in self._children:
                print(f"--- {child.name} said:\n{child.said()[-4000:]}")  # noqa: T201
        await self._stack.aclose()

    # -- the parts

    async def valkey(self, *, keeps: bool = False, on_socket: bool = False) -> Valkey:
        """Start a store."""
        name = f"valkey{len(self._children)}"
        store = Valkey(self._directory / name, keeps=keeps, on_socket=on_socket)
        self._children.append(store)
        self._stack.push_async_callback(store.close)
        await store.start()
        return store

    async def server(self, redis_url: str) -> ServerProcess:
        """Start a server; return when it is ready."""
        log = self._directory / f"server{len(self._children)}.log"
        server = ServerProcess(log, redis_url, **self._settings)
        self._children.append(server)
        self._stack.callback(server.kill)
        await server.start()
        await server.until_ready(True, timeout_s=5 * self.patience)
        return server

    def program(self, module: str, *words: object) -> Child:
        """Start a module of the tests as a program, with the settings of this test."""
        name = f"program{len(self._children)}"
        program = Child(name, self._directory / f"{name}.log")
        self._children.append(program)
        self._stack.callback(program.kill)
        settings = {f"TICKCAST_{name.upper()}": str(each) for name, each in self._settings.items()}
        command = [sys.executable, "-m", module, *map(str, words)]
        program.launch(command, {**plain_environment(), **settings})
        return program

    async def proxy(self, target: int) -> Proxy:
        return await self._stack.enter_async_context(running_proxy(target))

    async def publisher(self, redis_url: str, *, waits: bool = True) -> FeedPublisher:
        """Start a publisher of the default feed, in this process."""
        client = our_client(redis_url)
        self._stack.push_async_callback(client.aclose)
        publisher = FeedPublisher(client, DEFAULT_FEED, Settings(**self._settings), waits=waits)
        await publisher.__aenter__()
        # With an error, it does not wait until everything is published.
        self._stack.push_async_callback(publisher.__aexit__, GeneratorExit, None, None)
        return publisher

    async def crowd(self, url: str, symbol: str, size: int) -> Crowd:
        """Start auditors in a separate process; return when all are subscribed."""
        crowd = Crowd(url, symbol, size)
        self._stack.push_async_callback(crowd.close)
        await crowd.start()
        return crowd

    async def returning(self, url: str, size: int) -> Crowd:
        """Start cheap clients in a separate process, not connected yet."""
        crowd = Crowd(url, size, module=returning.__name__)
        self._stack.push_async_callback(crowd.close)
        await crowd.launch()
        return crowd

    def start(self, part: R) -> R:
        """Run something in the background until it ends or the test does."""
        self._tasks[part] = asyncio.create_task(part.run(), name=type(part).__name__)
        return part

    async def audience(
        self,
        server: ServerProcess,
        symbols: Sequence[str],
        *,
        auditors: int = 2,
        followers: int = 2,
        wildcards: int = 0,
    ) -> list[Client]:
        """Start clients with alternating encodings, subscribed before anything was published."""
        url, encodings = server.stream(), cycle(Encoding)
        clients: list[Client] = []
        for _, encoding in zip(range(auditors), encodings, strict=False):
            auditor = Auditor(url, symbols, encoding)
            auditor.expect_from_first()
            clients.append(auditor)
        clients += [Auditor(url, ["*"], next(encodings)) for _ in range(wildcards)]
        clients += [Follower(url, symbols, next(encodings)) for _ in range(followers)]
        for client in clients:
            self.start(client)
        await self.until_live(clients)
        return clients

    async def until_live(self, clients: Sequence[Client]) -> None:
        await self.until(lambda: all(each.live for each in clients), 10, "clients are live")

    async def end(self, part: Runs) -> None:
        """End something that was started."""
        await cancel_and_wait([self._tasks.pop(part)])

    # -- waiting

    async def until(
        self, condition: Callable[[], object], timeout_s: float, what: Callable[[], object] | str
    ) -> float:
        """Wait for a condition; return how long it took, in seconds.

        Args:
            what: names the condition in the failure, or tells why it does not hold.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        timeout_s *= self.patience
        while not condition():
            self._raise_failures()
            if clock() - began > timeout_s:
                why = what if isinstance(what, str) else what()
                raise AssertionError(f"not within {timeout_s:g} s: {why}")
            await asyncio.sleep(0.005)
        return clock() - began

    async def flowing(self, source: Source, offered: int) -> None:
        """Wait until a source has offered this number of ticks."""
        patience_s = 10 + offered / source.rate
        await self.until(lambda: source.offered >= offered, patience_s, f"{offered} ticks offered")

    async def pass_by(self, seconds: float) -> None:
        """Let time pass while a fault lasts or ticks flow."""
        end = asyncio.get_running_loop().time() + seconds
        await self.until(lambda: asyncio.get_running_loop().time() >= end, seconds + 5, "the time")

    def _raise_failures(self) -> None:
        for task in self._tasks.values():
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def recovered(
        self, source: Source, clients: Sequence[Client], within_s: float = RESUMES_WITHIN_S
    ) -> float:
        """Wait until every client has a tick of every symbol that is offered from now on.

        If the source has ended, wait until every client has all ticks.
        """
        new = {symbol: id_ + 1 for symbol, id_ in source.last_ids.items()}
        return await self._until_all_have(
            lambda: source.last_ids if source.ended else new, clients, within_s
        )

    async def finish(self, source: Source, clients: Sequence[Client], within_s: float = 10) -> None:
        """Stop the source, and wait until every client has its last ticks."""
        source.stop()
        await self.until(lambda: source.ended, within_s, "all is published")
        await self._until_all_have(lambda: source.last_ids, clients, within_s)

    async def _until_all_have(
        self, marks: Callable[[], Mapping[str, int]], clients: Sequence[Client], within_s: float
    ) -> float:
        def lacking() -> list[Client]:
            wanted = marks().items()
            return [each for each in clients if not all(each.has(*mark) for mark in wanted)]

        return await self.until(
            lambda: not lacking(), within_s, lambda: f"{lacking()} have the ticks {marks()}"
        )
