"""Ticks that a publisher has accepted and not sent yet. No I/O and no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Literal

from msgspec.structs import fields

from tickcast.wire.errors import InvalidTick
from tickcast.wire.ticks import StreamKey, Tick, channel_of, validate
from tickcast.wire.times import Time

# A batch of this many ticks occupies Redis for 0.2 ms; larger batches would gain little.
BATCH_TICKS_MAX: Final = 1_000
# Limit for ticks gathered by stream, at which a caller should wait before adding more.
WAITING_TICKS_MAX: Final = 20_000
# Memory per tick. Measured: a bare trade 260, one with id, venue and side 390, a quote with venues
# or a bar 460. The same figure for all kinds of ticks keeps counting cheap.
TICK_BYTES: Final = 460
_BATCHES_MAX: Final = 200
_SLICE_S: Final = 0.05

# Why a tick was dropped: it waited for longer than `outage_buffer_s`, there was no room for it in
# `outage_buffer_bytes`, or the publisher was closed before it was sent.
DropReason = Literal["too_old", "no_room", "closed"]

# The fields of a `StreamKey` as a plain tuple, which is much faster to create.
_Key = tuple[str, str, str]


@dataclass(slots=True)
class DroppedTicks:
    """Ticks of one stream that were accepted and never sent, with the first and last time."""

    count: int
    first: Time
    last: Time


@dataclass(slots=True)
class _Slice:
    """Ticks of all streams in order of arrival, from the time `since` (in seconds) on."""

    since: float
    ticks: deque[Tick] = field(default_factory=deque)


class PublishBuffer:
    """A queue of ticks, which keeps the order within each stream.

    Ticks are gathered by stream, ready to be sent. While Redis is away they are held in order of
    arrival, and the oldest are dropped when a limit is exceeded.

    Args:
        keep_s: the maximum time for which ticks are held, to within 50 ms.
        keep_bytes: the maximum memory for held ticks, each counted as `TICK_BYTES`.
    """

    def __init__(self, feed: str, keep_s: float, keep_bytes: int) -> None:
        self._feed = feed
        self._keep_s = keep_s
        self._keep_ticks = keep_bytes // TICK_BYTES
        self._gathered: dict[_Key, list[Tick]] = {}
        self._gathered_ticks = 0
        # Oldest slice first. A time for each slice, not for each tick, is precise enough.
        self._held: deque[_Slice] = deque()
        self._held_ticks = 0
        self._is_holding = False
        # Ticks added since the beginning, and ticks dropped, in total, by reason and by stream.
        self.accepted = 0
        self.dropped_ticks = 0
        self.dropped_by_reason: dict[DropReason, int] = {"too_old": 0, "no_room": 0, "closed": 0}
        self.dropped: dict[StreamKey, DroppedTicks] = {}

    @property
    def count(self) -> int:
        """The number of waiting ticks."""
        return self._gathered_ticks + self._held_ticks

    def add(self, ticks: Iterable[Tick], now_s: float, *, checked: bool = False) -> None:
        """Add ticks.

        Args:
            checked: the ticks have been validated.

        Raises:
            InvalidTick: a tick breaks the rules; neither it nor the ticks after it were added.
        """
        before = self.count
        try:
            if self._is_holding:
                self._hold_more(ticks, now_s, checked)
            else:
                self._gather(ticks, checked)
        finally:
            self.accepted += self.count - before

    def _hold_more(self, ticks: Iterable[Tick], now_s: float, checked: bool) -> None:
        if not self._held or now_s - self._held[-1].since >= _SLICE_S:
            self._held.append(_Slice(now_s))
        newest = self._held[-1].ticks
        for tick in ticks:
            if not checked:
                _validate(tick)
            newest.append(tick)
            self._held_ticks += 1

    def pop_batches(self) -> dict[StreamKey, list[Tick]]:
        """Remove and return at most one batch of each stream, longest-waiting streams first.

        Once all held ticks have been gathered, new ticks are no longer held.
        """
        while self._held and self._gathered_ticks < WAITING_TICKS_MAX:
            oldest = self._held.popleft().ticks
            self._held_ticks -= len(oldest)
            self._gather(oldest, checked=True)
        self._is_holding = bool(self._held)
        batches: dict[StreamKey, list[Tick]] = {}
        for key in list(self._gathered)[:_BATCHES_MAX]:
            ticks = self._gathered.pop(key)
            batch = batches[StreamKey(*key)] = ticks[:BATCH_TICKS_MAX]
            if len(ticks) > BATCH_TICKS_MAX:
                self._gathered[key] = ticks[BATCH_TICKS_MAX:]
            self._gathered_ticks -= len(batch)
        return batches

    def _gather(self, ticks: Iterable[Tick], checked: bool) -> None:
        feed, gathered = self._feed, self._gathered
        for tick in ticks:
            if not checked:
                _validate(tick)
            key = (feed, channel_of(tick), tick.symbol)
            try:
                gathered[key].append(tick)
            except KeyError:
                gathered[key] = [tick]
            self._gathered_ticks += 1

    # -- while Redis is away

    def hold(self, now_s: float) -> None:
        """Hold the gathered ticks as one slice, and all ticks added from now on."""
        self._is_holding = True
        if self._gathered:
            since = self._held[0].since if self._held else now_s
            ticks = deque(chain.from_iterable(self._gathered.values()))
            self._held.appendleft(_Slice(since, ticks))
            self._held_ticks += self._gathered_ticks
            self._gathered, self._gathered_ticks = {}, 0

    def trim(self, now_s: float) -> None:
        """Drop the oldest held ticks while a limit is exceeded."""
        while self._held and (
            self._held_ticks > self._keep_ticks or self._held[0].since < now_s - self._keep_s
        ):
            oldest = self._held[0].ticks
            if oldest:
                has_room = self._held_ticks <= self._keep_ticks
                self.drop([oldest.popleft()], "too_old" if has_room else "no_room")
                self._held_ticks -= 1
            else:
                self._held.popleft()

    def drop(self, ticks: Iterable[Tick], reason: DropReason) -> None:
        """Count ticks as dropped that are no longer in the queue."""
        for tick in ticks:
            key = StreamKey(self._feed, channel_of(tick), tick.symbol)
            dropped = self.dropped.setdefault(key, DroppedTicks(0, tick.time, tick.time))
            dropped.count += 1
            dropped.last = tick.time
            self.dropped_ticks += 1
            self.dropped_by_reason[reason] += 1

    def drop_all(self) -> None:
        """Drop everything that waits, because the publisher is closed."""
        self.drop(chain.from_iterable(self._gathered.values()), "closed")
        self.drop(chain.from_iterable(each.ticks for each in self._held), "closed")
        self._gathered, self._gathered_ticks = {}, 0
        self._held, self._held_ticks = deque(), 0


def _validate(tick: Tick) -> None:
    try:
        validate(tick)
    except InvalidTick as error:
        # Messages name a field as on the wire, but a program has set an attribute.
        name, _, rest = str(error).partition(" ")
        kind = type(tick)
        attributes = {field.encode_name: field.name for field in fields(kind)}
        name = name.rstrip(":")
        raise InvalidTick(f"{kind.__name__}.{attributes.get(name, name)} {rest}") from None
