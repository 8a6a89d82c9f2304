"""Records a stream into tapes: what `tickcast record` does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from clients.books import Gap, Position
from clients.state import Notice, Refused
from clients.stream import Stream
from feed.tapes.lines import Hole
from feed.tapes.shelf import Shelf
from feed.tapes.writer import TapeWriter
from feed.ticks import CHANNELS, Tick
from feed.times import Time

WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
"""Lines that wait for a slow disk. Above it no more is taken from the connection."""
SLOW: Final = "close"
"""Whoever is disconnected for slowness comes back, and gets from history what others would lose."""
_Result = TypeVar("_Result")


class Rotation(NamedTuple):
    """When to begin another tape; None is never."""

    after_s: float | None = None
    after_bytes: int | None = None


class Recorder:
    """Writes the ticks and gaps of one stream into one tape after the other.

    Attributes:
        ticks, gaps, tapes: how many there were.
        last: the last tick, and `rx` when it was received.

    Args:
        shelf: the folder, locked.
        flush_s: what is received is on the disk after so long.
        slow: what the server is to do when it is faster than the recorder.
    """

    def __init__(self, shelf: Shelf, rotation: Rotation, flush_s: float, slow: str = SLOW) -> None:
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
        """Of all tapes."""
        return self._done_bytes + self._writer.stored_bytes

    def _begin_tape(self) -> TapeWriter:
        self.tapes += 1
        return self._shelf.begin_tape()

    # -- what comes

    async def begin(
        self,
        stream: Stream,
        wanted: Mapping[str, Iterable[str]],
        known: Iterable[Position] = (),
        present: Iterable[Position] = (),
    ) -> None:
        """Subscribe: behind what earlier tapes hold, or from now on where there are none.

        Args:
            known: where the earlier tapes end.
            present: where the streams stand now, by `positions_of`. Those that are in another epoch
                are had from its first tick that is kept.

        Raises:
            ConnectionFailed: the server refuses.
        """
        epochs = {(each.channel, each.symbol): each.epoch for each in present}
        places = []
        for each in known:
            self._place(each)
            epoch = epochs.get((each.channel, each.symbol), each.epoch)
            if each.epoch not in ("", epoch):
                self.take_gap(Gap(each.channel, each.symbol, None, None, "epoch"))
                each = each._replace(epoch=epoch, seq=0)  # noqa: PLW2901 - it goes on from there
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
            if not error.is_of_the_unknown:
                raise
        return await stream.subscribe(wanted)  # It does what it does to the slow.

    def _place(self, position: Position) -> None:
        self._writer.place(*position, rx=int(Time.now()))

    def take_gap(self, gap: Gap) -> None:
        """Note ticks that will not come."""
        self.gaps += 1
        self._writer.mark(Hole(**gap._asdict(), rx=int(Time.now())))

    def take(self, tick: Tick) -> None:
        """Note a tick."""
        if tick.snap:
            return  # What was published up to it is not had. The next tick shows how much that is.
        rx = int(Time.now())
        stream = self._writer.tick(tick, rx, why_missing="unasked")
        if not stream.epoch and tick.seq is not None:
            self._nameless.add((stream.channel, stream.symbol))
        self.ticks += 1
        self.last, self.rx = tick, rx

    # -- the disk

    async def run(self, stream: Stream, limit: int | None = None) -> None:
        """Record until there are so many ticks, or until the stream ends.

        Raises:
            RecordingFailed: the disk does not take it.
            ConnectionFailed: the stream has ended for good.
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
                # We may be cancelled more than once. A write that is under way is awaited.
                with suppress(asyncio.CancelledError):
                    await asyncio.wait(tasks)

    async def _take_all(self, stream: Stream, limit: int | None) -> None:
        async for tick in stream:
            self.take(tick)
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
        """Bring to the disk what was received; raises RecordingFailed."""
        async with self._writing:
            self._name_epochs(stream)
            blocks = self._writer.take()
            await _in_a_thread(partial(self._writer.write, blocks))

    def _name_epochs(self, stream: Stream) -> None:
        """Note the epochs of new streams, which servers tell a little later.

        What waits may be of another one than what was taken.
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
        """Complete the tape; raises RecordingFailed."""
        self._writer.close()

    def discard(self) -> None:
        """Remove the tape: nothing could be recorded."""
        self._writer.discard()

    def abandon(self) -> None:
        """Leave the tape as it is: the disk does not take more."""
        self._writer.abandon()


async def positions_of(stream: Stream, wanted: Mapping[str, Iterable[str]]) -> list[Position]:
    """Where the streams stand now. The stream is of no use for a recording afterwards.

    Raises:
        ConnectionFailed: the server refuses.
    """
    return list(_positions_in(await stream.subscribe(wanted), wanted))


def _positions_in(
    reply: Mapping[str, Any], wanted: Mapping[str, Iterable[str]]
) -> Iterable[Position]:
    """Where streams stand by the reply to a subscription; nothing if it does not say so."""
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
                yield Position(channel, symbol, reply["epoch"], 0)  # Nothing was published yet.


async def _in_a_thread(work: Callable[[], _Result]) -> _Result:
    """Let a thread do it, so that ticks are taken meanwhile; it is finished even when cancelled."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        task.exception()  # The writer tells it again.
        raise
