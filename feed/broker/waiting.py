"""Ticks that a publisher has taken and not yet sent. No I/O and no clock inside."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from feed.ticks import StreamKey, Tick, channel_of, validate
from feed.times import Time

BATCH_TICKS_MAX: Final = 1_000
"""Ticks in one batch. Redis is held up for 0.2 ms by that; larger ones would gain little."""
WAITING_TICKS_MAX: Final = 20_000
"""Ticks gathered by stream; whoever wants to add more should wait."""
TICK_BYTES: Final = 460
"""What a tick takes in memory: one figure for all, so that counting is cheap.

Measured: a bare trade 260, one with id, venue and side 390, a quote with venues or a bar 460.
"""
_STREAMS_PER_ROUND: Final = 200
_SLICE_S: Final = 0.05

_Key = tuple[str, str, str]
"""What `StreamKey` is too, but made in a fraction of the time."""


@dataclass(slots=True)
class Dropped:
    """Ticks of one stream that were taken and never sent: how many, the first's and last's time."""

    count: int
    first: Time
    last: Time


@dataclass(slots=True)
class _Slice:
    """Ticks of all streams in the order they came, from the time `since` on, in seconds."""

    since: float
    ticks: deque[Tick] = field(default_factory=deque)


class Waiting:
    """What waits, in order within each stream.

    Ticks are gathered by stream, ready to be sent. While Redis is away they are held in the order
    they came, and beyond a bound the oldest are dropped.

    Args:
        keep_s: how long ticks are held at the most, to 50 ms.
        keep_bytes: how much memory they may take, each counted as `TICK_BYTES`.

    Attributes:
        accepted: how many ticks were added in all.
        dropped: what was, by stream.
        dropped_ticks: how many that is in all.
    """

    def __init__(self, feed: str, keep_s: float, keep_bytes: int) -> None:
        self._feed = feed
        self._keep_s = keep_s
        self._keep_ticks = keep_bytes // TICK_BYTES
        self._gathered: dict[_Key, list[Tick]] = {}
        self._gathered_ticks = 0
        self._held: deque[_Slice] = deque()
        self._held_ticks = 0
        self._holding = False
        self.accepted = 0
        self.dropped: dict[StreamKey, Dropped] = {}
        self.dropped_ticks = 0

    @property
    def count(self) -> int:
        """Ticks that wait."""
        return self._gathered_ticks + self._held_ticks

    def take(self, ticks: Iterable[Tick], now_s: float, *, checked: bool = False) -> None:
        """Add ticks.

        Args:
            checked: they are known to hold to the rules.

        Raises:
            InvalidTick: one breaks the rules; none after it was taken.
        """
        before = self.count
        try:
            if self._holding:
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
                validate(tick)
            newest.append(tick)
            self._held_ticks += 1

    def next_round(self) -> dict[StreamKey, list[Tick]]:
        """Take out at most one batch of each stream, those first that have waited longest.

        It ends the holding, as soon as all that was held has been gathered.
        """
        while self._held and self._gathered_ticks < WAITING_TICKS_MAX:
            oldest = self._held.popleft().ticks
            self._held_ticks -= len(oldest)
            self._gather(oldest, checked=True)
        self._holding = bool(self._held)
        batches: dict[StreamKey, list[Tick]] = {}
        for key in list(self._gathered)[:_STREAMS_PER_ROUND]:
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
                validate(tick)
            key = (feed, channel_of(tick), tick.symbol)
            try:
                gathered[key].append(tick)
            except KeyError:
                gathered[key] = [tick]
            self._gathered_ticks += 1

    def _key_of(self, tick: Tick) -> StreamKey:
        return StreamKey(self._feed, channel_of(tick), tick.symbol)

    # -- while Redis is away

    def hold(self, now_s: float) -> None:
        """Hold what is gathered, as one slice, and what comes from now on."""
        self._holding = True
        if self._gathered:
            since = self._held[0].since if self._held else now_s
            ticks = deque(chain.from_iterable(self._gathered.values()))
            self._held.appendleft(_Slice(since, ticks))
            self._held_ticks += self._gathered_ticks
            self._gathered, self._gathered_ticks = {}, 0

    def trim(self, now_s: float) -> None:
        """Drop what is held beyond a bound."""
        while self._held and (
            self._held_ticks > self._keep_ticks or self._held[0].since < now_s - self._keep_s
        ):
            oldest = self._held[0].ticks
            if oldest:
                self.drop([oldest.popleft()])
                self._held_ticks -= 1
            else:
                self._held.popleft()

    def drop(self, ticks: Iterable[Tick]) -> None:
        """Count ticks as dropped that are in here no more."""
        for tick in ticks:
            dropped = self.dropped.setdefault(self._key_of(tick), Dropped(0, tick.time, tick.time))
            dropped.count += 1
            dropped.last = tick.time
            self.dropped_ticks += 1

    def drop_all(self) -> None:
        """Drop everything that waits."""
        self.drop(chain.from_iterable(self._gathered.values()))
        self.drop(chain.from_iterable(each.ticks for each in self._held))
        self._gathered, self._gathered_ticks = {}, 0
        self._held, self._held_ticks = deque(), 0
