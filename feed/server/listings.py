"""Builds the pages that `/symbols` and `/snapshot` return, in slices of the event loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import urlencode

from feed.access.entitlements import EVERYTHING, Entitlements
from feed.server.answers import Body, Pauses
from tickcast.broker.store import Store
from tickcast.wire.encoding import Encoding, encode_elements
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import CHANNELS, StreamKey, sort_channels

PAGE_MAX: Final = 10_000
"""Maximum number of elements in a page; also the default."""
_HEADS_AT_ONCE: Final = 100
_ENCODED_AT_ONCE: Final = 500


class Page(NamedTuple):
    """The part of a listing that a request asks for.

    Attributes:
        limit: maximum number of elements.
        after: the symbol after which the page begins; empty for the first page.
    """

    limit: int = PAGE_MAX
    after: str = ""


async def list_symbols(store: Store, feed: str, rights: Entitlements, page: Page) -> Body:
    """The symbols of a feed with their channels, in order."""
    pauses = Pauses()
    channels: dict[str, list[str]] = {}
    for key in await _streams_of(store, feed, pauses):
        await pauses.pause()
        if key.symbol > page.after and _may_see(rights, key):
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
    store: Store, feed: str, rights: Entitlements, patterns: Sequence[str], page: Page
) -> Body:
    """The latest ticks of all streams that match symbols and wildcards, in order.

    A page ends after the last stream of a symbol, so that the next page can begin there. It
    exceeds its limit only if a single symbol has more streams.
    """
    pauses = Pauses()
    wanted: list[Subscription] = []
    for pattern in patterns:
        for channel in CHANNELS:
            wanted += rights.narrow(feed, Subscription(channel, pattern))
        await pauses.pause()
    coverage = Coverage(wanted)
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
    async for key in store.listed(feed):
        found.append(key)
        await pauses.pause()
    return found


def _may_see(rights: Entitlements, key: StreamKey) -> bool:
    return rights == EVERYTHING or rights.allows(key.feed, Subscription(key.channel, key.symbol))


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
