"""Publishing for clients: the right to publish, limits, and `POST /v1/publish`.

The answers are described in `docs/publishing.md`.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from redis.asyncio import Redis
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from feed.access.entitlements import Grant, Proof
from feed.transport.address_limits import TokenBucket
from tickcast.broker.request_publisher import KeyReused, Overloaded, RequestPublisher
from tickcast.settings import Settings
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.errors import BrokerUnavailable, InvalidTick, TickcastError
from tickcast.wire.subscriptions import Subscription
from tickcast.wire.tick_input import TickFormat, parse_ticks
from tickcast.wire.ticks import Tick, channel_of
from tickcast.wire.times import Time

# How long a request waits for Redis. A client that gets no answer has to repeat its request.
TIMEOUT_S: Final = 5.0
# In `Retry-After`. An outage of Redis is usually over within a few seconds.
_RETRY_S: Final = 1
_NO_RIGHT: Final = "these credentials don't include the right to publish"
_NOT_LOCAL: Final = (
    "a server without authentication takes ticks only from its own machine, without a proxy in"
    " between, and only if it listens nowhere else"
)
# A header is not always UTF-8, so a key is ASCII.
_KEY: Final = re.compile(r"[\x21-\x7e]{1,128}")
# A request costs as much as this many ticks, at least.
_REQUEST_TICKS: Final = 10
# Publishers of feeds and allowances of subjects that were used last are kept.
_FEEDS_MAX: Final = 100
_SUBJECTS_MAX: Final = 10_000


class PublishDenied(TickcastError):
    """A client may not publish these ticks, or not now."""


class TooFast(TickcastError):
    """A client publishes more than its rate allows."""


class ClientPublishing:
    """Publishes the ticks of clients, one `RequestPublisher` for each feed in use."""

    def __init__(self, client: Redis, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        # Tasks, because requests that arrive while a publisher opens wait for the same one. The
        # least recently used feed comes first.
        self._publishers: OrderedDict[str, asyncio.Task[RequestPublisher]] = OrderedDict()
        # What each credential or address may still publish; the least recently used comes first.
        self._allowances: OrderedDict[str, TokenBucket] = OrderedDict()

    async def stop(self) -> None:
        """Stop all publishers. Requests that wait fail."""
        publishers, self._publishers = list(self._publishers.values()), OrderedDict()
        for each in await asyncio.gather(*publishers, return_exceptions=True):
            if isinstance(each, RequestPublisher):
                await each.stop()

    def check_right(self, grant: Grant | None) -> Grant:
        """Return a client's grant if it may publish at all. Raises PublishDenied."""
        if grant is not None and grant.publishes:
            return grant
        raise PublishDenied(_NOT_LOCAL if grant and grant.proof is Proof.NOTHING else _NO_RIGHT)

    def _check_streams(self, grant: Grant, feed: str, ticks: Sequence[Tick]) -> None:
        # A request has thousands of ticks, but few streams.
        streams = {Subscription(channel_of(tick), tick.symbol) for tick in ticks}
        # Sorted, so that a repeated request gets the same answer.
        for channel, symbol in sorted(grant.entitlements.refused(feed, streams))[:1]:
            raise PublishDenied(f"these credentials don't cover {channel} of {symbol} in {feed}")

    def _charge(self, publisher: str, ticks: int) -> None:
        rate = self._settings.publish_ticks_per_s
        bucket = self._allowances.get(publisher)
        if bucket is None:
            bucket = self._allowances[publisher] = TokenBucket(rate, 2 * rate)
            if len(self._allowances) > _SUBJECTS_MAX:
                self._allowances.popitem(last=False)
        self._allowances.move_to_end(publisher)
        if not bucket.consume(max(ticks, _REQUEST_TICKS), monotonic()):
            raise TooFast(f"more than {rate:g} ticks a second")

    async def publish(
        self,
        grant: Grant,
        address: str,
        feed: str,
        ticks: Sequence[Tick],
        *,
        key: str | None = None,
        digest: str = "",
    ) -> int:
        """Publish a client's ticks; return their number when they are published.

        Args:
            grant: the client's rights, which `check_right` has accepted.
            address: counts the ticks of clients that need no credentials.
            key, digest: the idempotency key and a digest of the request that has one.

        Raises:
            PublishDenied: the credentials don't cover all the ticks.
            TooFast: the client's rate does not allow that many.
            BrokerUnavailable, BrokerUnsuitable, Overloaded, KeyReused: see `RequestPublisher`.
        """
        self._check_streams(grant, feed, ticks)
        name = _publisher_name(grant, address)
        self._charge(name, len(ticks))
        publisher = await self._publisher_of(feed)
        if key is not None:
            return await publisher.publish_once(ticks, f"{name} {key}", digest, TIMEOUT_S)
        if ticks:
            await publisher.publish(ticks, TIMEOUT_S)
        return len(ticks)

    async def _publisher_of(self, feed: str) -> RequestPublisher:
        opening = self._publishers.get(feed)
        if opening is None:
            opening = self._publishers[feed] = asyncio.create_task(self._open(feed))
            if len(self._publishers) > _FEEDS_MAX:
                _, oldest = self._publishers.popitem(last=False)
                with suppress(TickcastError):  # It may have failed to open.
                    await (await oldest).stop()
        self._publishers.move_to_end(feed)
        try:
            # A client that leaves must not cancel what others wait for.
            return await asyncio.shield(opening)
        except TickcastError:
            if self._publishers.get(feed) is opening:
                del self._publishers[feed]  # Try again with the next request.
            raise

    async def _open(self, feed: str) -> RequestPublisher:
        publisher = RequestPublisher(self._client, feed, self._settings)
        await publisher.open()
        return publisher


def _publisher_name(grant: Grant, address: str) -> str:
    """The name under which a client's ticks are counted, and its idempotency keys are kept."""
    if grant.proof is Proof.NOTHING:
        # All programs of a machine share one allowance. Nothing tells them apart.
        return f"address:{address}"
    return f"{grant.proof.value}:{grant.subject}"


async def answer_publish(
    request: Request, publishing: ClientPublishing, feed: str, grant: Grant
) -> Response:
    """Answer `POST /v1/publish`, whose sender has been authenticated.

    Raises:
        HTTPException: with the status and the reason of a refusal.
    """
    # A page can send other types to any server without asking (Fetch standard, "CORS-safelisted
    # request-header"). These three need a preflight request, which this server doesn't answer.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        form = TickFormat(kind)
    except ValueError:
        known = ", ".join(each.value for each in TickFormat)
        raise HTTPException(415, f"Content-Type {kind[:60]!a} is none of {known}") from None
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise HTTPException(400, "Idempotency-Key is not 1 to 128 printable ASCII characters")
    address = request.client.host if request.client else ""
    body = await request.body()
    try:
        publishing.check_right(grant)
        ticks = parse_ticks(body, form, Time.now())
        digest = hashlib.sha256(body).hexdigest() if key is not None else ""
        count = await publishing.publish(grant, address, feed, ticks, key=key, digest=digest)
    except InvalidTick as error:
        raise HTTPException(400, str(error)) from None
    except PublishDenied as error:
        raise HTTPException(403, str(error)) from None
    except KeyReused as error:
        raise HTTPException(422, str(error)) from None
    except (TooFast, Overloaded) as error:
        raise HTTPException(429, str(error), {"Retry-After": str(_RETRY_S)}) from None
    except BrokerUnavailable as error:
        raise HTTPException(503, str(error), {"Retry-After": str(_RETRY_S)}) from None
    published: dict[str, Any] = {"published": count}
    return Response(encode(published, Encoding.JSON), media_type="application/json")
