"""Record a stream into tapes, for `tickcast record`."""

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

WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
"""Limit on the lines buffered for a slow disk. Above it, reading from the connection stops."""
SLOW: Final = "close"
"""A client closed for slowness reconnects and gets the missed ticks from history."""
_Result = TypeVar("_Result")


class Rotation(NamedTuple):
    """When to begin a new tape; None means never."""

    after_s: float | None = None
    after_bytes: int | None = None


class Recorder:
    """Writes the ticks and gaps of one stream into a series of tapes.

    Attributes:
        ticks, gaps, tapes: how many were recorded.
        last: the last tick, and `rx`, the time it was received.

    Args:
        shelf: the folder of tapes, which must be locked.
        flush_s: the longest time from receiving a tick to flushing it to disk, in seconds.
        slow: the server's policy if the recorder is too slow.
    """

    def __init__(
        self, shelf: RecordingDirectory, rotation: Rotation, flush_s: float, slow: str = SLOW
    ) -> None:
        self.ticks = self.gaps = self.tapes = 0
        self.last: Tick | None = None
        self.rx = 0
        self._shelf = shelf
        self._rotation = rotation
        self._flush_s = flush_s
        self._slow = slow
        self._writer = self._begin_tape()
        self._done_bytes = 0
        self._began_s = 0.0
        self._nameless: set[tuple[str, str]] = set()
        self._writing = asyncio.Lock()

    @property
    def stored_bytes(self) -> int:
        """The size of all tapes that this recorder has written."""
        return self._done_bytes + self._writer.stored_bytes

    def _begin_tape(self) -> TapeWriter:
        self.tapes += 1
        return self._shelf.begin_tape()

    # -- subscribing and recording

    async def begin(
        self,
        stream: Stream,
        wanted: Mapping[str, Iterable[str]],
        known: Iterable[Position] = (),
        present: Iterable[Position] = (),
    ) -> None:
        """Subscribe, resuming after the ticks on earlier tapes, or from now on if there are none.

        Args:
            known: the positions at which the earlier tapes end.
            present: the current positions of the streams, by `positions_of`. Streams that are in
                another epoch are recorded from its first retained tick.

        Raises:
            ConnectionFailed: the server refused.
        """
        epochs = {(each.channel, each.symbol): each.epoch for each in present}
        places = []
        for each in known:
            self._place(each)
            epoch = epochs.get((each.channel, each.symbol), each.epoch)
            if each.epoch not in ("", epoch):
                self.add_gap(Gap(each.channel, each.symbol, None, None, "epoch"))
                each = each._replace(epoch=epoch, seq=0)  # noqa: PLW2901 - resume here
                self._place(each)
            places.append(each)
        if places:
            await stream.resume(wanted, places, slow=self._slow)
        else:
            for each in _positions_in(await self._subscribe(stream, wanted), wanted):
                self._place(each)
        await self.flush(stream)

    async def _subscribe(self, stream: Stream, wanted: Mapping[str, Iterable[str]]) -> Notice:
        try:
            return await stream.subscribe(wanted, slow=self._slow)
        except Refused as error:
            if not error.is_unknown_extension:
                raise
        return await stream.subscribe(wanted)  # The server applies its own slow policy.

    def _place(self, position: Position) -> None:
        self._writer.place(*position, rx=int(Time.now()))

    def add_gap(self, gap: Gap) -> None:
        """Record a gap."""
        self.gaps += 1
        self._writer.mark(GapMark(**gap._asdict(), rx=int(Time.now())))

    def add(self, tick: Tick) -> None:
        """Record a tick."""
        if tick.snap:
            return  # Earlier ticks are missing. The next tick shows how many.
        rx = int(Time.now())
        stream = self._writer.tick(tick, rx, why_missing="unasked")
        if not stream.epoch and tick.seq is not None:
            self._nameless.add((stream.channel, stream.symbol))
        self.ticks += 1
        self.last, self.rx = tick, rx

    # -- writing to disk

    async def run(self, stream: Stream, limit: int | None = None) -> None:
        """Record until there are `limit` ticks, or until the stream ends.

        Raises:
            RecordingFailed: writing to disk failed.
            ConnectionFailed: the stream ended and can't be resumed.
        """
        loop = asyncio.get_running_loop()
        self._began_s = loop.time()
        tasks = [
            loop.create_task(self._take_all(stream, limit), name="take"),
            loop.create_task(self._flush_forever(stream), name="flush"),
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

    async def _take_all(self, stream: Stream, limit: int | None) -> None:
        async for tick in stream:
            self.add(tick)
            if self.ticks == limit:
                return
            if self._writer.waiting_bytes > WAITING_BYTES_MAX:
                await self.flush(stream)

    async def _flush_forever(self, stream: Stream) -> None:
        while True:
            await asyncio.sleep(self._flush_s)
            await self.flush(stream)
            if self._is_due():
                await self._rotate()

    async def flush(self, stream: Stream) -> None:
        """Write everything received so far to disk; raises RecordingFailed."""
        async with self._writing:
            self._name_epochs(stream)
            blocks = self._writer.pop_pending()
            await _in_a_thread(partial(self._writer.write, blocks))

    def _name_epochs(self, stream: Stream) -> None:
        """Record the epochs of new streams, which servers report with a delay.

        Ticks still in the client's queue may belong to a different epoch than those recorded.
        """
        if stream.waiting:
            return
        for channel, symbol in list(self._nameless):
            held = self._writer.ledger.stream(channel, symbol)
            epoch = stream.epoch_of(channel, symbol)
            if epoch and held.seq is not None:
                self._nameless.discard((channel, symbol))
                self._writer.place(channel, symbol, epoch, held.seq, int(Time.now()))

    def _is_due(self) -> bool:
        after_s, after_bytes = self._rotation
        age_s = asyncio.get_running_loop().time() - self._began_s
        if not self._writer.ledger.ticks:
            return False
        return (
            self._writer.is_full
            or (after_s is not None and age_s >= after_s)
            or (after_bytes is not None and self._writer.stored_bytes >= after_bytes)
        )

    async def _rotate(self) -> None:
        async with self._writing:
            old, new = self._writer, self._begin_tape()
            self._writer = new
            for held in old.ledger:
                if held.seq is not None:
                    new.place(held.channel, held.symbol, held.epoch, held.seq, int(Time.now()))
            self._began_s = asyncio.get_running_loop().time()
            try:
                await _in_a_thread(old.close)
            finally:
                self._done_bytes += old.stored_bytes

    def close(self) -> None:
        """Finish the tape; raises RecordingFailed."""
        self._writer.close()

    def discard(self) -> None:
        """Remove the tape, after recording could not start."""
        self._writer.discard()

    def abandon(self) -> None:
        """Leave the tape as it is, after the disk has failed."""
        self._writer.abandon()


async def positions_of(stream: Stream, wanted: Mapping[str, Iterable[str]]) -> list[Position]:
    """Return the current positions of the streams. Do not use `stream` for a recording afterwards.

    Raises:
        ConnectionFailed: the server refused.
    """
    return list(_positions_in(await stream.subscribe(wanted), wanted))


def _positions_in(
    reply: Mapping[str, Any], wanted: Mapping[str, Iterable[str]]
) -> Iterable[Position]:
    """Yield the positions in the reply to a subscription, if it has any."""
    if "positions" not in reply:
        return
    told = set()
    for each in reply["positions"]:
        for channel in CHANNELS:
            for symbol, seq in each.get(channel, {}).items():
                told.add((channel, symbol))
                yield Position(channel, symbol, each["epoch"], seq)
    for channel, symbols in wanted.items():
        for symbol in symbols:
            if not symbol.endswith("*") and (channel, symbol) not in told:
                yield Position(channel, symbol, reply["epoch"], 0)  # Nothing published yet.


async def _in_a_thread(work: Callable[[], _Result]) -> _Result:
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
