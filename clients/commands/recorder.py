"""Records a stream as a series of tapes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from tickcast.client.accounts import Gap, Position
from tickcast.client.messages import Notice, Refused
from tickcast.client.stream import Stream
from tickcast.tapes.format import GapMark
from tickcast.tapes.library import RecordingDirectory
from tickcast.tapes.writer import TapeWriter
from tickcast.wire.ticks import CHANNELS, Tick
from tickcast.wire.times import Time

# Limit on the lines buffered for a slow disk. Above it, reading from the connection stops, and the
# server applies its policy for slow clients.
_WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
# A client closed for slowness reconnects and gets the missed ticks from history.
DEFAULT_SLOW_POLICY: Final = "close"
_Result = TypeVar("_Result")


class Rotation(NamedTuple):
    """When to begin a new tape; None means never."""

    after_s: float | None = None
    after_bytes: int | None = None


class Recorder:
    """Writes the ticks and gaps of one stream into a series of tapes.

    Args:
        directory: where the tapes go. It must be locked.
        flush_s: the longest time from receiving a tick to flushing it to disk, in seconds.
        slow: the server's policy if the recorder is too slow.
    """

    def __init__(
        self,
        directory: RecordingDirectory,
        rotation: Rotation,
        flush_s: float,
        slow: str = DEFAULT_SLOW_POLICY,
    ) -> None:
        # How many were recorded.
        self.ticks = self.gaps = self.tapes = 0
        # The last tick, and when it was received, in nanoseconds since the Unix epoch.
        self.last_tick: Tick | None = None
        self.received = 0
        self._directory = directory
        self._rotation = rotation
        self._flush_s = flush_s
        self._slow = slow
        self._writer = self._begin_tape()
        self._began_s = 0.0
        # The size of the tapes before the current one.
        self._finished_bytes = 0
        # Streams whose epoch is not on the tape yet.
        self._without_epoch: set[tuple[str, str]] = set()
        # A flush and a rotation write in a thread, and must not do so at the same time.
        self._writing = asyncio.Lock()

    @property
    def stored_bytes(self) -> int:
        """The size of all tapes that this recorder has written."""
        return self._finished_bytes + self._writer.stored_bytes

    def _begin_tape(self) -> TapeWriter:
        self.tapes += 1
        return self._directory.begin_tape()

    async def begin(
        self,
        stream: Stream,
        requested: Mapping[str, Iterable[str]],
        recorded: Iterable[Position] = (),
        current: Iterable[Position] = (),
    ) -> None:
        """Subscribe, resuming after the ticks on earlier tapes, or from now on if there are none.

        Args:
            current: the current positions of the streams, by `positions_of`. Streams that are in
                another epoch are recorded from its first retained tick.

        Raises:
            ConnectionFailed: the server refused.
        """
        epochs = {(each.channel, each.symbol): each.epoch for each in current}
        resumed = []
        for position in recorded:
            self._mark(position)
            epoch = epochs.get((position.channel, position.symbol), position.epoch)
            if position.epoch in ("", epoch):
                resumed.append(position)
                continue
            self.add_gap(Gap(position.channel, position.symbol, None, None, "epoch"))
            resumed.append(position._replace(epoch=epoch, seq=0))
            self._mark(resumed[-1])
        if resumed:
            await stream.resume(requested, resumed, slow=self._slow)
        else:
            for position in _positions_in(await self._subscribe(stream, requested), requested):
                self._mark(position)
        await self._flush(stream)

    async def _subscribe(self, stream: Stream, requested: Mapping[str, Iterable[str]]) -> Notice:
        try:
            return await stream.subscribe(requested, slow=self._slow)
        except Refused as error:
            if not error.is_unknown_extension:
                raise
        return await stream.subscribe(requested)  # The server applies its own slow policy.

    def _mark(self, position: Position) -> None:
        self._writer.append_position(*position, rx=int(Time.now()))

    def add_gap(self, gap: Gap) -> None:
        """Record a gap."""
        self.gaps += 1
        self._writer.append_mark(GapMark(**gap._asdict(), rx=int(Time.now())))

    def _add_tick(self, tick: Tick) -> None:
        if tick.snap:
            return  # Earlier ticks are missing. The next tick shows how many.
        received = int(Time.now())
        stats = self._writer.append_tick(tick, received, gap_reason="unasked")
        if not stats.epoch and tick.seq is not None:
            self._without_epoch.add((stats.channel, stats.symbol))
        self.ticks += 1
        self.last_tick, self.received = tick, received

    async def record(self, stream: Stream, limit: int | None = None) -> None:
        """Record until there are `limit` ticks, or until the stream ends.

        Raises RecordingFailed, or ConnectionFailed if the stream ended and can't be resumed.
        """
        loop = asyncio.get_running_loop()
        self._began_s = loop.time()
        tasks = [
            loop.create_task(self._receive_ticks(stream, limit)),
            loop.create_task(self._flush_and_rotate(stream)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            while not all(task.done() for task in tasks):
                # This task may be cancelled more than once. Still wait for a pending write.
                with suppress(asyncio.CancelledError):
                    await asyncio.wait(tasks)

    async def _receive_ticks(self, stream: Stream, limit: int | None) -> None:
        async for tick in stream:
            self._add_tick(tick)
            if self.ticks == limit:
                return
            if self._writer.waiting_bytes > _WAITING_BYTES_MAX:
                await self._flush(stream)

    async def _flush_and_rotate(self, stream: Stream) -> None:
        while True:
            await asyncio.sleep(self._flush_s)
            await self._flush(stream)
            if self._is_tape_finished():
                await self._rotate()

    async def _flush(self, stream: Stream) -> None:
        """Write everything received so far to disk; raises RecordingFailed."""
        async with self._writing:
            self._mark_epochs(stream)
            frames = self._writer.pop_pending()
            await _run_in_thread(partial(self._writer.write, frames))

    def _mark_epochs(self, stream: Stream) -> None:
        """Record the epochs of new streams, which servers report with a delay."""
        # Ticks still in the client's queue may belong to a different epoch than those recorded.
        if stream.waiting:
            return
        for channel, symbol in list(self._without_epoch):
            stats = self._writer.stats.stream(channel, symbol)
            epoch = stream.epoch_of(channel, symbol)
            if epoch and stats.seq is not None:
                self._without_epoch.discard((channel, symbol))
                self._mark(Position(channel, symbol, epoch, stats.seq))

    def _is_tape_finished(self) -> bool:
        after_s, after_bytes = self._rotation
        age_s = asyncio.get_running_loop().time() - self._began_s
        return self._writer.stats.ticks > 0 and (
            self._writer.is_full
            or (after_s is not None and age_s >= after_s)
            or (after_bytes is not None and self._writer.stored_bytes >= after_bytes)
        )

    async def _rotate(self) -> None:
        async with self._writing:
            finished, self._writer = self._writer, self._begin_tape()
            for stats in finished.stats:
                if stats.seq is not None:
                    self._mark(Position(stats.channel, stats.symbol, stats.epoch, stats.seq))
            self._began_s = asyncio.get_running_loop().time()
            try:
                await _run_in_thread(finished.close)
            finally:
                self._finished_bytes += finished.stored_bytes

    def finish(self) -> None:
        """Finish the tape; raises RecordingFailed."""
        self._writer.close()

    def discard(self) -> None:
        """Remove the tape, after recording could not start."""
        self._writer.discard()

    def abandon(self) -> None:
        """Leave the tape as it is, after the disk has failed."""
        self._writer.abandon()


async def positions_of(stream: Stream, requested: Mapping[str, Iterable[str]]) -> list[Position]:
    """Return the current positions of the streams. Do not use `stream` for a recording afterwards.

    Raises ConnectionFailed if the server refuses.
    """
    return _positions_in(await stream.subscribe(requested), requested)


def _positions_in(
    reply: Mapping[str, Any], requested: Mapping[str, Iterable[str]]
) -> list[Position]:
    """Return the positions in the reply to a subscription, if it has any."""
    if "positions" not in reply:
        return []
    positions = {
        (channel, symbol): Position(channel, symbol, group["epoch"], seq)
        for group in reply["positions"]
        for channel in CHANNELS
        for symbol, seq in group.get(channel, {}).items()
    }
    for channel, symbols in requested.items():
        for symbol in symbols:
            if not symbol.endswith("*"):
                # Nothing has been published yet in a stream that is not listed.
                unpublished = Position(channel, symbol, reply["epoch"], 0)
                positions.setdefault((channel, symbol), unpublished)
    return list(positions.values())


async def _run_in_thread(work: Callable[[], _Result]) -> _Result:
    """Run in a thread, so that ticks are received meanwhile; finishes even when cancelled."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        task.exception()  # The writer raises it again.
        raise
