"""The long responses of `/symbols`, `/snapshot` and `/tapes`.

They are built in slices of the event loop, shared by identical requests, and sent as the client
reads them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from time import perf_counter
from typing import Final, NamedTuple
from urllib.parse import urlencode

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from feed.access.entitlements import EVERYTHING, Entitlements
from tickcast.broker.store import Store
from tickcast.tasks import cancel_and_wait
from tickcast.wire.encoding import Encoding, encode_elements
from tickcast.wire.errors import HandshakeRefused
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import CHANNELS, StreamKey, sort_channels

# Maximum number of elements in a page; also the default.
PAGE_MAX: Final = 10_000
# How much of a response is sent before the client has read the part before it.
PART_BYTES: Final = 32 * 1024
_SLICE_S: Final = 0.005
# How many different responses may be built or held at a time: about 20 MiB at 10,000 streams.
_BODIES_MAX: Final = 16
_WAITING_MAX: Final = 256
_WAITING_PER_ADDRESS_MAX: Final = 8
_RETRY_S: Final = 1
_HEADS_AT_ONCE: Final = 100
_ENCODED_AT_ONCE: Final = 500


class Body(NamedTuple):
    """A response in JSON."""

    content: bytes
    # The value of the `Link` header (RFC 8288); empty for no header.
    link: str = ""


Build = Callable[[], Awaitable[Body]]


# -- sharing


class BodyShare:
    """One request's share in a body. Call `release` after the response was sent."""

    __slots__ = ("_shares", "address", "task")

    def __init__(
        self, task: asyncio.Task[Body], address: str | None, shares: set[BodyShare]
    ) -> None:
        self.task = task
        self.address = address
        self._shares = shares
        shares.add(self)

    async def wait(self) -> Body:
        """Wait until the body is built, and return it."""
        # Shielded, because other requests may wait for it.
        return await asyncio.shield(self.task)

    def release(self) -> None:
        """Give the share back, after the response was sent or the request failed."""
        self._shares.discard(self)


class SharedBodies:
    """Builds bodies one at a time, so that together they never block the loop.

    Identical requests share a body while it is still queued. Once its build has started, a new
    request queues a new build, so a response is never older than the request. Any number of
    simultaneous requests therefore causes at most two builds.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        # The builds that have not started yet.
        self._queued: dict[Hashable, asyncio.Task[Body]] = {}
        # Every request until its response is sent. There are few, so they are counted when needed.
        self._shares: set[BodyShare] = set()

    def share(self, key: Hashable, build: Build, address: str | None) -> BodyShare:
        """Join the requests that wait for a body, and queue its build if necessary.

        Args:
            key: identifies the body; requests with equal keys may share one.
            build: builds the body, in slices.
            address: the client's address; None if it is not limited.

        Raises:
            HandshakeRefused: too many requests are waiting.
        """
        of_address = sum(each.address == address for each in self._shares)
        if address is not None and of_address >= _WAITING_PER_ADDRESS_MAX:
            raise HandshakeRefused("busy", 429, "too many long responses at once", _RETRY_S)
        task = self._queued.get(key)
        is_full = task is None and len({each.task for each in self._shares}) >= _BODIES_MAX
        if is_full or len(self._shares) >= _WAITING_MAX:
            raise HandshakeRefused("busy", 503, "too many long responses at once", _RETRY_S)
        if task is None:
            task = asyncio.create_task(self._build(key, build), name="listing")
            self._queued[key] = task
        return BodyShare(task, address, self._shares)

    async def _build(self, key: Hashable, build: Build) -> Body:
        async with self._turn:
            del self._queued[key]
            return await build()

    async def cancel_builds(self) -> None:
        """Cancel all builds."""
        await cancel_and_wait({each.task for each in self._shares})


class LongResponse(Response):
    """A response that is sent in parts, each after the client has read enough of the earlier ones.

    If it were sent in one part, uvicorn would buffer all of it for a client that does not read.
    """

    media_type = "application/json"

    def __init__(self, body: Body, share: BodyShare) -> None:
        super().__init__(body.content, headers={"Link": body.link} if body.link else None)
        self._share = share

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
            for start in range(0, max(1, end), PART_BYTES):
                part = bytes(content[start : start + PART_BYTES])
                more = start + PART_BYTES < end
                await send({"type": "http.response.body", "body": part, "more_body": more})
                await asyncio.sleep(0)
        finally:
            self._share.release()


# -- building


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


class ListingPage(NamedTuple):
    """The part of a listing that a request selects."""

    # Maximum number of elements.
    limit: int = PAGE_MAX
    # The symbol after which the page begins; empty for the first page.
    after: str = ""


async def list_symbols(
    store: Store, feed: str, entitlements: Entitlements, page: ListingPage
) -> Body:
    """The symbols of a feed with their channels, in order."""
    pauses = Pauses()
    channels: dict[str, list[str]] = {}
    for key in await _streams_of(store, feed, pauses):
        await pauses.pause()
        if key.symbol > page.after and _may_see(entitlements, key):
            channels.setdefault(key.symbol, []).append(key.channel)
    symbols = sorted(channels)
    rows = []
    for symbol in symbols[: page.limit]:
        rows.append({"S": symbol, "channels": sort_channels(channels[symbol])})
        await pauses.pause()
    link = ""
    if len(symbols) > page.limit:
        link = _link("/symbols", feed, page.limit, symbols[page.limit - 1])
    return Body(await _encode(rows, pauses), link)


async def list_latest(
    store: Store, feed: str, entitlements: Entitlements, patterns: Sequence[str], page: ListingPage
) -> Body:
    """The latest ticks of all streams that match symbols and wildcards, in order.

    A page ends after the last stream of a symbol, so that the next page can begin there. It
    exceeds its limit only if a single symbol has more streams.
    """
    pauses = Pauses()
    subscriptions: list[Subscription] = []
    for pattern in patterns:
        for channel in CHANNELS:
            subscriptions += entitlements.narrow(feed, Subscription(channel, pattern))
        await pauses.pause()
    coverage = Coverage(subscriptions)
    order = {channel: number for number, channel in enumerate(CHANNELS)}
    covered: list[tuple[str, int, StreamKey]] = []
    for key in await _streams_of(store, feed, pauses):
        await pauses.pause()
        if key.symbol > page.after and coverage.covers(key):
            covered.append((key.symbol, order[key.channel], key))
    covered.sort()
    found = [key for _, _, key in covered]
    await pauses.pause()
    shown = _whole_symbols(found, page.limit)
    ticks: list[object] = []
    for start in range(0, len(shown), _HEADS_AT_ONCE):
        heads = await store.heads(shown[start : start + _HEADS_AT_ONCE])
        ticks += [head.latest for head in heads if head.latest is not None]
        await pauses.pause()
    link = ""
    if len(shown) < len(found):
        symbols = ",".join(patterns)
        link = _link("/snapshot", feed, page.limit, shown[-1].symbol, symbols=symbols)
    return Body(await _encode(ticks, pauses), link)


async def _streams_of(store: Store, feed: str, pauses: Pauses) -> list[StreamKey]:
    found: list[StreamKey] = []
    async for key in store.iter_streams(feed):
        found.append(key)
        await pauses.pause()
    return found


def _may_see(entitlements: Entitlements, key: StreamKey) -> bool:
    return entitlements == EVERYTHING or entitlements.allows(
        key.feed, Subscription(key.channel, key.symbol)
    )


def _whole_symbols(streams: list[StreamKey], limit: int) -> list[StreamKey]:
    """The first streams, up to the limit, without splitting a symbol."""
    if len(streams) <= limit:
        return streams
    end = limit
    while end and streams[end - 1].symbol == streams[end].symbol:
        end -= 1
    if not end:
        first = streams[0].symbol
        end = next((n for n, key in enumerate(streams) if key.symbol != first), len(streams))
    return streams[:end]


async def _encode(elements: Sequence[object], pauses: Pauses) -> bytes:
    parts = []
    for start in range(0, len(elements), _ENCODED_AT_ONCE):
        parts.append(encode_elements(elements[start : start + _ENCODED_AT_ONCE], Encoding.JSON))  # type: ignore[arg-type]
        await pauses.pause()
    return b"[" + b",".join(parts) + b"]"


def _link(path: str, feed: str, limit: int, after: str, **more: str) -> str:
    query = urlencode({"feed": feed, **more, "limit": limit, "after": after}, safe="/,*")
    return f'<{path}?{query}>; rel="next"'
