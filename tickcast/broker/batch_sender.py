"""Sends batches to the publish script until it confirms them, without publishing any twice."""

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

from tickcast.broker import keys
from tickcast.broker.client import database_of, translated_errors
from tickcast.broker.connection import PipelinedConnection, RedisCommand
from tickcast.broker.scripts import Script, is_unknown
from tickcast.broker.store import Store
from tickcast.settings import Settings
from tickcast.wire.encoding import pack
from tickcast.wire.errors import BrokerUnavailable
from tickcast.wire.ticks import StreamKey, Tick

_ATTEMPTS: Final = 5
# What `publish.lua` expects of a stream whose last number is unknown: that it has one.
_HAS_NUMBERS: Final = -1

_PUBLISH: Final = Script.from_file("publish.lua")

# Atomic: otherwise a lost answer would leave it unknown whether the streams were announced.
_ANNOUNCE: Final = Script("""
if redis.call('SADD', KEYS[1], ARGV[1]) == 1 then redis.call('PUBLISH', ARGV[2], ARGV[1]) end
""")


@dataclass(slots=True)
class OutgoingBatch:
    """A batch of one stream to be sent."""

    # The sender's number for the batch, which it keeps when it is sent again.
    number: str
    ticks: Sequence[Tick]
    # The name under which the script remembers the number.
    sender: str
    # Whether the batch was sent and the answer is missing.
    is_in_doubt: bool = False


class BatchSender:
    """Publishes batches of one feed, one batch of a stream at a time."""

    def __init__(self, client: Redis, feed: str, settings: Settings) -> None:
        self._client = client
        self._database = database_of(client)
        self._store = Store(client)
        self._connection = PipelinedConnection(client)
        self._feed = feed
        self._retain = (settings.history_ticks, int(settings.history_age_s * 1000))
        self._numbers = count(1)
        self._epoch = ""
        # The last number of each stream in this epoch, or _HAS_NUMBERS. If Redis has lost numbers,
        # it would assign them again; the script compares.
        self._last_seqs: dict[StreamKey, int] = {}
        self._unannounced: dict[StreamKey, None] = {}
        # The field for this sender's last batch number in a stream's meta hash.
        self.name = f"p:{secrets.token_hex(6)}"
        # Ticks known to be published.
        self.published = 0
        # Streams that another program publishes too, in the order in which this was noticed.
        self.shared_streams: dict[StreamKey, None] = {}

    async def open(self) -> None:
        """Read the feed's epoch and streams."""
        self._epoch = await self._store.epoch(self._feed, keep=True)
        self._last_seqs = dict.fromkeys(await self._store.streams(self._feed), _HAS_NUMBERS)

    @property
    def has_streams(self) -> bool:
        """Whether this sender knows any stream of the feed."""
        return bool(self._last_seqs)

    async def begin_epoch(self) -> None:
        """Begin a new epoch in every stream. After a failure, continue with the same epoch."""
        epoch = await self._store.begin_epoch(self._feed, self._epoch)
        # Restart quiet streams too, so that their old latest ticks don't seem to be current.
        await self._store.restart(list(self._last_seqs), epoch)
        self._switch_epoch(epoch)

    async def disconnect(self) -> None:
        """Close the connection. The next `send` opens another."""
        await self._connection.close()

    async def disconnect_all(self) -> None:
        """Close all connections, since they may lead to a Redis that is no longer the master."""
        await self._connection.close()
        with suppress(exceptions.RedisError):
            await self._client.connection_pool.disconnect(inuse_connections=False)

    def prepare(
        self, batches: Mapping[StreamKey, Sequence[Tick]], sender: str | None = None
    ) -> dict[StreamKey, OutgoingBatch]:
        """Assign numbers to batches.

        A stream's batch must be published before its next one is sent.

        Args:
            sender: a name that is used for these batches alone. If they are prepared again under
                this name, even elsewhere, the script recognizes them.
        """
        if sender is not None:
            return {
                key: OutgoingBatch(f"{1:012x}", ticks, sender) for key, ticks in batches.items()
            }
        return {
            key: OutgoingBatch(f"{next(self._numbers):012x}", ticks, self.name)
            for key, ticks in batches.items()
        }

    async def send(self, batches: dict[StreamKey, OutgoingBatch]) -> None:
        """Publish batches. Published ones are removed from `batches`, even if this fails.

        After BrokerUnavailable, call `disconnect_all` and try again.
        """
        for _ in range(_ATTEMPTS):
            # All batches may be published already, and the announcement have failed.
            refusal = await self._send_once(batches) if batches else None
            if self._unannounced:
                await self._announce()
            if refusal is None:
                return
            await self._recover(refusal)
        raise BrokerUnavailable("no service from Redis: it keeps rejecting batches")

    async def _send_once(
        self, batches: dict[StreamKey, OutgoingBatch]
    ) -> exceptions.RedisError | None:
        """Send each batch once, and return the first refusal."""
        refusal: exceptions.RedisError | None = None
        replies = await self._call_script(batches)
        for key, reply in zip(list(batches), replies, strict=True):
            if isinstance(reply, exceptions.RedisError):
                refusal = refusal or reply
            else:
                self._confirm(key, batches.pop(key), reply)
        return refusal

    async def _call_script(self, batches: Mapping[StreamKey, OutgoingBatch]) -> list[Any]:
        # Open first: if that fails, nothing was sent, and the batches are not in doubt.
        if not self._connection.is_open:
            await self._connection.open()
        now_us = time.time_ns() // 1000
        try:
            return await self._connection.call(
                [self._to_command(key, batch, now_us) for key, batch in batches.items()]
            )
        except BaseException:
            for batch in batches.values():
                batch.is_in_doubt = True
            raise

    def _to_command(self, key: StreamKey, batch: OutgoingBatch, now_us: int) -> RedisCommand:
        return _PUBLISH.to_command(
            (keys.meta(key), keys.history(key)),
            self._epoch,
            self._last_seqs.get(key, 0),
            len(batch.ticks),
            now_us,
            *self._retain,
            pack(batch.ticks),
            pack(batch.ticks[-1:]),
            keys.sortable(max([tick.time for tick in batch.ticks])),
            batch.sender,
            batch.number,
            keys.channel_in(self._database, keys.ticks(key)),
        )

    def _confirm(self, key: StreamKey, batch: OutgoingBatch, first_seq: int) -> None:
        """Record that a batch is published; `first_seq` is 0 if an earlier attempt did it."""
        count = len(batch.ticks)
        self.published += count
        if key not in self._last_seqs:
            self._unannounced[key] = None
        last_seq = self._last_seqs.get(key, _HAS_NUMBERS)
        if first_seq:
            if 0 < last_seq < first_seq - 1:
                # Numbers that this sender did not assign, between two of its batches.
                self.shared_streams.setdefault(key)
            self._last_seqs[key] = first_seq + count - 1
        elif last_seq > 0 and batch.is_in_doubt:
            # The stream has at least these numbers. More would be those of another program.
            self._last_seqs[key] = last_seq + count
        else:
            self._last_seqs[key] = last_seq

    async def _announce(self) -> None:
        """Add the streams that this sender has published for the first time to the directory.

        This follows the publish, so that all streams in the directory have been published.
        """
        directory = [keys.directory(self._feed)]
        channel = keys.channel_in(self._database, keys.announcements(self._feed))
        calls = [(directory, (keys.to_member(key), channel)) for key in self._unannounced]
        await _ANNOUNCE.call_all(self._client, calls, self._connection)
        self._unannounced.clear()

    async def _recover(self, refusal: exceptions.RedisError) -> None:
        """Remove the reason why the script or Redis refused a batch, or raise the refusal."""
        code, _, detail = str(refusal).partition(" ")
        with translated_errors():
            if is_unknown(refusal):
                await _PUBLISH.load(self._client)
            elif code == "LOST":
                self._switch_epoch(await self._store.begin_epoch(self._feed, self._epoch))
            elif code == "STALE":
                epoch = await self._store.epoch(self._feed, keep=True)
                if epoch < detail:
                    # The feed's epoch was lost, and a server whose clock is behind made another.
                    epoch = await self._store.begin_epoch(self._feed, detail)
                self._switch_epoch(epoch)
            else:
                raise refusal

    def _switch_epoch(self, epoch: str) -> None:
        """Continue in another epoch, in which no stream is known to have been published."""
        self._epoch = epoch
        self._last_seqs = {}
