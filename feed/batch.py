"""What travels through Redis: consecutive ticks of one stream under one header."""

from __future__ import annotations

from typing import NamedTuple

from feed.errors import InvalidTick
from feed.ticks import Tick, number, unpack


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
