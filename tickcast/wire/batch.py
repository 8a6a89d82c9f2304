"""Batches, the messages that travel through Redis, and the results of reading history."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from tickcast.wire.encoding import unpack
from tickcast.wire.errors import InvalidTick
from tickcast.wire.ticks import Tick, number


class Batch(NamedTuple):
    """Consecutive ticks of one stream, numbered by the broker.

    Attributes:
        epoch: identifies the numbering. A later epoch compares greater.
        ticks: at least one. Their `seq` rises by one from tick to tick.
        published_us: when the publisher sent them, in microseconds since the Unix epoch. In
            history, it is when the store received them, accurate to the millisecond.
    """

    epoch: str
    ticks: list[Tick]
    published_us: int = 0

    @property
    def first_seq(self) -> int:
        """The sequence number of the first tick."""
        return self.ticks[0].seq or 0

    @classmethod
    def parse(cls, message: bytes) -> Batch:
        """Parse a pub/sub message: `epoch first_seq published_us`, a line feed, packed ticks.

        Raises:
            InvalidTick: the message does not have this form.
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
    """Some of a stream's retained batches, in order, read at one moment.

    Attributes:
        epoch, seq: the stream's position at that moment; empty and 0 if it was never published.
        through: the last sequence number that the read covered. A tick up to here that is missing
            from `batches` is not retained.
        complete: whether the read reached the end of the stream.
    """

    epoch: str
    seq: int
    batches: list[Batch]
    through: int
    complete: bool


class HistoryPlace(NamedTuple):
    """The position of a point in time within a stream.

    Attributes:
        epoch, seq: the current position of the stream; empty and 0 if it was never published.
        before: the sequence number before the first tick that is not older than the time. It is
            `seq` if there is no such tick. If that tick is no longer retained, it is the number
            before the oldest retained tick.
        trimmed: whether the first such tick is no longer retained.
    """

    epoch: str
    seq: int
    before: int
    trimmed: bool


class GapReason(Enum):
    """Why ticks are no longer available (`docs/protocol.md`, section "Gaps")."""

    RETENTION = "retention"
    """They are older than the retained history."""
    EPOCH = "epoch"
    """The numbering has restarted."""
    BROKER = "broker"
    """They were lost between the store and the server."""


class SequenceGap(NamedTuple):
    """Ticks of a stream, from `first_seq` to `last_seq`, that are no longer available.

    A number is None if it is not known. For a new epoch, both are None.
    """

    first_seq: int | None
    last_seq: int | None
    reason: GapReason

    @property
    def ticks(self) -> int:
        """How many ticks are missing; 0 if that is not known."""
        if self.first_seq is None or self.last_seq is None:
            return 0
        return self.last_seq - self.first_seq + 1


NEW_EPOCH: Final = SequenceGap(None, None, GapReason.EPOCH)
