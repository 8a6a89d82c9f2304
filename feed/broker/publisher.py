"""The producers' way in: ticks go to Redis in batches by stream."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Final

from redis import exceptions
from redis.asyncio import Redis

from feed.broker import keys
from feed.broker.client import translated_errors
from feed.broker.pipe import Pipe
from feed.broker.store import Store
from feed.errors import BrokerUnavailable
from feed.settings import Settings
from feed.tasks import end_tasks
from feed.ticks import StreamKey, Tick, channel_of, pack, validate

BATCH_TICKS_MAX: Final = 500
"""Ticks in one batch; larger ones would hold Redis up and gain nothing."""
WAITING_TICKS_MAX: Final = 20_000
"""Ticks taken and not yet published; `publish` waits above it."""
_STREAMS_PER_ROUND: Final = 200
_ATTEMPTS: Final = 5

_SCRIPT: Final = resources.files("feed.broker").joinpath("publish.lua").read_text("utf-8")


class Publisher:
    """Publishes the ticks of one feed.

    There is one round trip under way at a time. What arrives meanwhile is gathered by stream and
    goes with the next: when idle a tick leaves at once, and under load batches form by themselves.

    Use it as a context manager; leaving it normally waits until everything is published.
    """

    def __init__(self, client: Redis, feed: str, settings: Settings) -> None:
        self._client = client
        self._store = Store(client)
        self._pipe = Pipe(client)
        self._feed = feed
        self._retain = (settings.history_ticks, int(settings.history_age_s * 1000))
        self._sha = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
        self._waiting: dict[StreamKey, list[Tick]] = {}
        self._waiting_ticks = 0
        self._epoch = ""
        self._known: set[StreamKey] = set()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._failure: Exception | None = None
        self._sender: asyncio.Task[None] | None = None
        self.published = 0

    async def __aenter__(self) -> Publisher:
        self._epoch = await self._store.epoch(self._feed, keep=True)
        self._known = await self._store.streams(self._feed)
        self._room.set()
        self._idle.set()
        self._sender = asyncio.create_task(self._send_forever(), name="publisher")
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            if kind is None:
                await self.drain()
        finally:
            if self._sender is not None:
                await end_tasks([self._sender])
            await self._pipe.close()

    async def publish(self, ticks: Iterable[Tick]) -> None:
        """Take ticks; returns at once unless too many are waiting already.

        Raises:
            InvalidTick: one breaks the rules; none after it was taken.
            BrokerUnavailable, BrokerUnsuitable: publishing has failed; the publisher is done for.
        """
        self._raise_failure()
        for tick in ticks:
            validate(tick)
            key = StreamKey(self._feed, channel_of(tick), tick.symbol)
            self._waiting.setdefault(key, []).append(tick)
            self._waiting_ticks += 1
            self._idle.clear()
            self._news.set()
        if self._waiting_ticks >= WAITING_TICKS_MAX:
            self._room.clear()
            await self._room.wait()
            self._raise_failure()

    async def drain(self) -> None:
        """Wait until everything taken so far is published. Raises as `publish` does."""
        self._raise_failure()
        await self._idle.wait()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure

    async def _send_forever(self) -> None:
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    await self._send_round(self._take_round())
                    if self._waiting_ticks < WAITING_TICKS_MAX:
                        self._room.set()
                self._idle.set()
        except Exception as error:
            self._failure = error
            self._room.set()
            self._idle.set()

    def _take_round(self) -> dict[StreamKey, list[Tick]]:
        """At most one batch of each stream, the streams that have waited longest first."""
        taken: dict[StreamKey, list[Tick]] = {}
        for key in list(self._waiting)[:_STREAMS_PER_ROUND]:
            ticks = self._waiting.pop(key)
            taken[key] = ticks[:BATCH_TICKS_MAX]
            if len(ticks) > BATCH_TICKS_MAX:
                self._waiting[key] = ticks[BATCH_TICKS_MAX:]
            self._waiting_ticks -= len(taken[key])
        return taken

    async def _send_round(self, batches: dict[StreamKey, list[Tick]]) -> None:
        """Publish one batch each of some streams; what is turned down is mended and resent."""
        for _ in range(_ATTEMPTS):
            replies = await self._call_script(batches)
            refused = {
                key: reply
                for key, reply in zip(batches, replies, strict=True)
                if isinstance(reply, exceptions.RedisError)
            }
            done = [key for key in batches if key not in refused]
            self.published += sum(len(batches[key]) for key in done)
            await self._announce([key for key in done if key not in self._known])
            if not refused:
                return
            await self._mend(refused.values())
            batches = {key: batches[key] for key in refused}
        raise BrokerUnavailable("Redis keeps turning batches down")

    async def _call_script(self, batches: dict[StreamKey, list[Tick]]) -> Sequence[object]:
        now_us = time.time_ns() // 1000
        return await self._pipe.call(
            [
                (
                    "EVALSHA",
                    self._sha,
                    2,
                    keys.meta(key),
                    keys.history(key),
                    self._epoch,
                    int(key in self._known),
                    len(ticks),
                    now_us,
                    *self._retain,
                    pack(ticks),
                    pack(ticks[-1:]),
                    keys.ticks(key),
                )
                for key, ticks in batches.items()
            ]
        )

    async def _announce(self, new: Sequence[StreamKey]) -> None:
        """Enter streams into the directory when they are published for the first time from here.

        It comes after the publish, so that what the directory lists has been published.
        """
        if not new:
            return
        entering = self._client.pipeline(transaction=False)
        for key in new:
            entering.sadd(keys.directory(self._feed), keys.to_member(key))
        telling = self._client.pipeline(transaction=False)
        with translated_errors():
            for key, added in zip(new, await entering.execute(), strict=True):
                if added:
                    telling.publish(keys.announcements(self._feed), keys.to_member(key))
            await telling.execute()
        self._known.update(new)

    async def _mend(self, refusals: Iterable[exceptions.RedisError]) -> None:
        """Remove the causes for which the script, or Redis before it, turned batches down."""
        for refusal in refusals:
            with translated_errors():
                if isinstance(refusal, exceptions.NoScriptError):
                    self._sha = await self._client.script_load(_SCRIPT)
                elif str(refusal).startswith("LOST"):
                    self._enter(await self._store.begin_epoch(self._feed, self._epoch))
                elif str(refusal).startswith("STALE"):
                    self._enter(await self._store.epoch(self._feed, keep=True))
                else:
                    raise refusal

    def _enter(self, epoch: str) -> None:
        """Go on in another epoch, in which no stream is known to have been published yet."""
        self._epoch = epoch
        self._known = set()
