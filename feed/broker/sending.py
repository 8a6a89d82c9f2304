"""Sends batches to the publish script, each until it is known to be published, and never twice."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Redis

from feed.broker import keys
from feed.broker.client import database_of, translated_errors
from feed.broker.pipe import Command, Pipe
from feed.broker.scripts import Script, is_unknown
from feed.broker.store import Store
from feed.encoding import pack
from feed.errors import BrokerUnavailable
from feed.settings import Settings
from feed.ticks import StreamKey, Tick

_ATTEMPTS: Final = 5
_HAS_A_NUMBERING: Final = -1

_PUBLISH: Final = Script.of_file("publish.lua")

# In one step: else, after a lost answer, nobody would know whether the rest is still to be told.
_ANNOUNCE: Final = Script("""
if redis.call('SADD', KEYS[1], ARGV[1]) == 1 then redis.call('PUBLISH', ARGV[2], ARGV[1]) end
""")


@dataclass(slots=True)
class Outgoing:
    """A batch of one stream on its way.

    Attributes:
        number: the sender's own for it. It keeps it however often it is sent.
        is_in_doubt: True when it was sent and the answer is missing.
    """

    number: str
    ticks: Sequence[Tick]
    is_in_doubt: bool = False


class Sender:
    """Publishes batches of one feed, one batch of a stream at a time.

    Attributes:
        published: ticks known to be published.
    """

    def __init__(self, client: Redis, feed: str, settings: Settings) -> None:
        self._client = client
        self._database = database_of(client)
        self._store = Store(client)
        self._pipe = Pipe(client)
        self._feed = feed
        self._retain = (settings.history_ticks, int(settings.history_age_s * 1000))
        self._name = f"p:{secrets.token_hex(6)}"
        self._numbers = count(1)
        self._epoch = ""
        self._reached: dict[StreamKey, int] = {}
        self._unlisted: dict[StreamKey, None] = {}
        self.published = 0

    async def open(self) -> None:
        """Learn what is there already. Raises as `send` does."""
        self._epoch = await self._store.epoch(self._feed, keep=True)
        self._reached = dict.fromkeys(await self._store.streams(self._feed), _HAS_A_NUMBERING)

    @property
    def name(self) -> str:
        """The field of a stream's meta hash that has the number of its last batch from here."""
        return self._name

    @property
    def has_streams(self) -> bool:
        """Whether a stream of the feed is known."""
        return bool(self._reached)

    async def begin_epoch(self) -> None:
        """Number what is sent from now on anew, in every stream. Raises as `send` does.

        When it has failed, the next call goes on with the same epoch.
        """
        epoch = await self._store.begin_epoch(self._feed, self._epoch)
        # The quiet streams as well: nobody should take their latest ticks for those of the present.
        await self._store.restart(list(self._reached), epoch)
        self._enter(epoch)

    async def close(self) -> None:
        """Close the connection; the next `send` makes another."""
        await self._pipe.close()

    async def hang_up(self) -> None:
        """Have every connection made anew: one may lead to a Redis that is no longer in charge."""
        await self._pipe.close()
        with suppress(exceptions.RedisError):
            await self._client.connection_pool.disconnect(inuse_connections=False)

    def prepare(self, batches: Mapping[StreamKey, Sequence[Tick]]) -> dict[StreamKey, Outgoing]:
        """Give batches their numbers.

        Of a stream, one must be published before the next is sent.
        """
        return {
            key: Outgoing(f"{next(self._numbers):012x}", ticks) for key, ticks in batches.items()
        }

    async def send(self, batches: dict[StreamKey, Outgoing]) -> None:
        """Publish batches. Those that are published leave `batches`, also when it fails.

        Raises:
            BrokerUnavailable: hang up and call it again.
            BrokerUnsuitable: there is no use in that.
        """
        for _ in range(_ATTEMPTS):
            refusal = await self._try(batches) if batches else None
            if self._unlisted:
                await self._announce()
            if refusal is None:
                return
            await self._mend(refusal)
        raise BrokerUnavailable("no service from Redis: it keeps turning batches down")

    async def _try(self, batches: dict[StreamKey, Outgoing]) -> exceptions.RedisError | None:
        """Send each batch once; returns the first of the refusals."""
        refusal: exceptions.RedisError | None = None
        replies = await self._call_script(batches)
        for key, reply in zip(list(batches), replies, strict=True):
            if isinstance(reply, exceptions.RedisError):
                refusal = refusal or reply
            else:
                self._note(key, len(batches.pop(key).ticks), reply)
        return refusal

    async def _call_script(self, batches: Mapping[StreamKey, Outgoing]) -> list[Any]:
        if not self._pipe.is_open:
            await self._pipe.open()
        now_us = time.time_ns() // 1000
        try:
            return await self._pipe.call(
                [self._command(key, batch, now_us) for key, batch in batches.items()]
            )
        except BaseException:
            for batch in batches.values():
                batch.is_in_doubt = True
            raise

    def _command(self, key: StreamKey, batch: Outgoing, now_us: int) -> Command:
        return _PUBLISH.command(
            (keys.meta(key), keys.history(key)),
            self._epoch,
            self._reached.get(key, 0),
            len(batch.ticks),
            now_us,
            *self._retain,
            pack(batch.ticks),
            pack(batch.ticks[-1:]),
            keys.sortable(max([tick.time for tick in batch.ticks])),
            self._name,
            batch.number,
            keys.channel_in(self._database, keys.ticks(key)),
        )

    def _note(self, key: StreamKey, count: int, first_seq: int) -> None:
        """A batch is published: just now, or before, where `first_seq` is 0."""
        self.published += count
        if key not in self._reached:
            self._unlisted[key] = None
        if first_seq:
            self._reached[key] = first_seq + count - 1
        else:
            self._reached.setdefault(key, _HAS_A_NUMBERING)

    async def _announce(self) -> None:
        """Enter streams into the directory that are published for the first time from here.

        It comes after the publish, so that what the directory lists has been published.
        """
        directory = [keys.directory(self._feed)]
        channel = keys.channel_in(self._database, keys.announcements(self._feed))
        await _ANNOUNCE.call_through(
            self._pipe,
            self._client,
            [(directory, (keys.to_member(key), channel)) for key in self._unlisted],
        )
        self._unlisted.clear()

    async def _mend(self, refusal: exceptions.RedisError) -> None:
        """Remove the cause for which the script, or Redis before it, turned a batch down."""
        kind, _, words = str(refusal).partition(" ")
        with translated_errors():
            if is_unknown(refusal):
                await _PUBLISH.load(self._client)
            elif kind == "LOST":
                self._enter(await self._store.begin_epoch(self._feed, self._epoch))
            elif kind == "STALE":
                epoch = await self._store.epoch(self._feed, keep=True)
                if epoch < words:
                    # The feed's own was lost. A server whose clock is behind has made another.
                    epoch = await self._store.begin_epoch(self._feed, words)
                self._enter(epoch)
            else:
                raise refusal

    def _enter(self, epoch: str) -> None:
        """Go on in another epoch, in which no stream is known to have been published yet."""
        self._epoch = epoch
        self._reached = {}
