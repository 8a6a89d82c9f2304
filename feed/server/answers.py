"""Bound the cost of HTTP requests: the rate for each address, and the building of long answers.

Long answers are built in slices, shared by identical requests, and sent as the client reads them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from time import monotonic, perf_counter
from typing import Final, NamedTuple

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from feed.transport.address_limits import AddressLimits
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import HandshakeRefused

PIECE_BYTES: Final = 32 * 1024
_SLICE_S: Final = 0.005
_BODIES_MAX: Final = 16
"""How many different answers may be built or held at a time: about 20 MiB at 10,000 streams."""
_WAITING_MAX: Final = 256
_WAITING_PER_ADDRESS_MAX: Final = 8
_RETRY_S: Final = 1


class RequestLimits:
    """ASGI middleware that limits the request rate of each address, on every path.

    It reads `address_limits` and the counter `refused` from the lifespan state.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wait_s = _wait_s(scope) if scope["type"] == "http" else 0
        if not wait_s:
            await self._app(scope, receive, send)
            return
        scope["state"]["refused"]["requests"] += 1
        # If the connection stayed open, the next request would follow immediately.
        headers = {"Retry-After": str(wait_s), "Connection": "close"}
        response = PlainTextResponse("too many requests from this address\n", 429, headers)
        await response(scope, receive, send)


def _wait_s(scope: Scope) -> int:
    limits: AddressLimits = scope["state"]["address_limits"]
    limiter = limits.of(scope["client"][0]) if scope["client"] else None
    if limiter is None:
        return 0
    now_s = monotonic()
    return limiter.shut_out_s(now_s) or limiter.spend_request(now_s)


class Body(NamedTuple):
    """An answer in JSON.

    Attributes:
        content: the complete body.
        link: the value of the `Link` header (RFC 8288); empty for no header.
    """

    content: bytes
    link: str = ""


Build = Callable[[], Awaitable[Body]]


class Pauses:
    """Makes long work yield to the event loop after each time slice."""

    __slots__ = ("_end_s",)

    def __init__(self) -> None:
        self._end_s = perf_counter() + _SLICE_S

    async def pause(self) -> None:
        """Yield to the loop if the slice is used up. Cheap otherwise."""
        if perf_counter() >= self._end_s:
            await asyncio.sleep(0)
            self._end_s = perf_counter() + _SLICE_S


class _Entry:
    """One answer, kept from the first request until every waiting client has received it."""

    __slots__ = ("key", "task", "users")

    def __init__(self, key: Hashable, task: asyncio.Task[Body]) -> None:
        self.key = key
        self.task = task
        self.users = 0


class Place:
    """A request's share in an answer. Call `leave` to give it up."""

    __slots__ = ("_address", "_answers", "_entry", "_has_left")

    def __init__(self, answers: Answers, entry: _Entry, address: str | None) -> None:
        self._answers = answers
        self._entry = entry
        self._address = address
        self._has_left = False

    async def body(self) -> Body:
        """Wait until the answer is built, and return it."""
        return await asyncio.shield(self._entry.task)

    def leave(self) -> None:
        """Give the place back, after the answer was sent or the request failed."""
        if not self._has_left:
            self._has_left = True
            self._answers.release(self._entry, self._address)


class Answers:
    """Builds answers one at a time, so that together they never block the loop.

    Identical requests share an answer while it is still queued. Once its build has started, a new
    request queues a new build, so an answer is never older than the request. Any number of
    simultaneous requests therefore causes at most two builds.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._queued: dict[Hashable, _Entry] = {}
        self._entries: set[_Entry] = set()
        self._waiting = 0
        self._by_address: dict[str, int] = {}

    def enter(self, key: Hashable, build: Build, address: str | None) -> Place:
        """Join the requests that wait for an answer, and queue its build if necessary.

        Args:
            key: identifies the answer; requests with equal keys may share one.
            build: builds the answer, in slices.
            address: the client's address; None if it is not limited.

        Raises:
            Refused: too many requests are waiting.
        """
        if address is not None and self._by_address.get(address, 0) >= _WAITING_PER_ADDRESS_MAX:
            raise HandshakeRefused("busy", 429, "too many long answers at once", _RETRY_S)
        entry = self._queued.get(key)
        is_full = entry is None and len(self._entries) >= _BODIES_MAX
        if is_full or self._waiting >= _WAITING_MAX:
            raise HandshakeRefused("busy", 503, "too many long answers at once", _RETRY_S)
        if entry is None:
            entry = _Entry(key, asyncio.create_task(self._build(key, build), name="answer"))
            self._queued[key] = entry
            self._entries.add(entry)
        entry.users += 1
        self._waiting += 1
        if address is not None:
            self._by_address[address] = self._by_address.get(address, 0) + 1
        return Place(self, entry, address)

    async def close(self) -> None:
        """Cancel all builds."""
        await cancel_and_wait([entry.task for entry in self._entries])

    async def _build(self, key: Hashable, build: Build) -> Body:
        async with self._turn:
            del self._queued[key]
            return await build()

    def release(self, entry: _Entry, address: str | None) -> None:
        """Give a place back. Called by `Place.leave`."""
        self._waiting -= 1
        entry.users -= 1
        if not entry.users:
            self._entries.discard(entry)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]


class LongResponse(Response):
    """A response that is sent in pieces, each after the client has read enough of the earlier ones.

    If it were sent in one piece, uvicorn would buffer all of it for a client that does not read.
    """

    media_type = "application/json"

    def __init__(self, body: Body, place: Place) -> None:
        super().__init__(body.content, headers={"Link": body.link} if body.link else None)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            content, end = memoryview(self.body), len(self.body)
            for start in range(0, max(1, end), PIECE_BYTES):
                piece = bytes(content[start : start + PIECE_BYTES])
                more = start + PIECE_BYTES < end
                await send({"type": "http.response.body", "body": piece, "more_body": more})
                await asyncio.sleep(0)
        finally:
            self._place.leave()
