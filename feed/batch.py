"""What travels through Redis: consecutive ticks of one stream under one header; and gaps."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from feed.encoding import unpack
from feed.errors import InvalidTick
from feed.ticks import Tick, number


class Batch(NamedTuple):
    """Consecutive ticks of one stream, numbered by the broker.

    Attributes:
        epoch: names the numbering; a later epoch compares greater.
        ticks: at least one; their `seq` rises by one each.
        published_us: when the publisher handed them over, microseconds since the Unix epoch; in
            history, when the store took them, to the millisecond.
    """

    epoch: str
    ticks: list[Tick]
    published_us: int = 0

    @property
    def first_seq(self) -> int:
        """The number of its first tick."""
        return self.ticks[0].seq or 0

    @classmethod
    def parse(cls, message: bytes) -> Batch:
        """Read a pub/sub message: `epoch first_seq published_us`, a line feed, packed ticks.

        Raises:
            InvalidTick: it is not of this form.
        """
        header, _, payload = message.partition(b"\n")
        try:
            epoch, first_seq, published_us = header.decode("ascii").split(" ")
            batch = cls(epoch, number(unpack(payload), int(first_seq)), int(published_us))
        except ValueError:
            raise InvalidTick(f"undecodable header: {header[:60]!a}") from None
        if not batch.ticks:
            raise InvalidTick("empty batch")
        return batch


class History(NamedTuple):
    """Some of a stream's retained batches, in order, as they were at one moment.

    Attributes:
        epoch, seq: where the stream stood then; empty and 0 where it was never published.
        through: the last number that was looked at: what is missing up to here is not retained.
        complete: whether that is all there was.
    """

    epoch: str
    seq: int
    batches: list[Batch]
    through: int
    complete: bool


class Place(NamedTuple):
    """Where in a stream a point in time lies.

    Attributes:
        epoch, seq: where the stream stands; empty and 0 where it was never published.
        before: the number before the first tick that is not older than the time. Where there is
            none, `seq`; where the first is no longer retained, the number before the oldest
            that is.
        trimmed: whether the first is no longer retained.
    """

    epoch: str
    seq: int
    before: int
    trimmed: bool


class GapReason(Enum):
    """Why ticks can't be had any more (`docs/protocol.md`, section "Gaps")."""

    RETENTION = "retention"
    """They are older than the history that is kept."""
    EPOCH = "epoch"
    """The numbering has restarted."""
    BROKER = "broker"
    """They were lost between the store and the server."""


class Gap(NamedTuple):
    """Ticks of a stream, from `first_seq` to `last_seq`, that can't be had any more.

    Either number is None where it is not known; both are for a new epoch.
    """

    first_seq: int | None
    last_seq: int | None
    reason: GapReason

    @property
    def ticks(self) -> int:
        """How many are missing, as far as it is known."""
        if self.first_seq is None or self.last_seq is None:
            return 0
        return self.last_seq - self.first_seq + 1


NEW_EPOCH: Final = Gap(None, None, GapReason.EPOCH)
