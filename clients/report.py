"""What a client can show of its books: sums by stream, and whether they add up."""

from __future__ import annotations

from typing import NamedTuple


class StreamReport(NamedTuple):
    """The books of one stream; the numbers are those of `Book`."""

    channel: str
    symbol: str
    epoch: str
    seq: int | None
    published: int
    delivered: int
    merged: int
    skipped: int
    gapped: int
    missing: int
    repeated: int
    gaps: int
    restarts: int
    snapshots: int


class Report(NamedTuple):
    """The books of all streams that a client has heard of, sorted, and how often it came back."""

    streams: tuple[StreamReport, ...]
    reconnects: int

    def total(self, name: str) -> int:
        """The sum of one column, such as `delivered`, over all streams.

        >>> from clients.books import Books
        >>> Books().report(reconnects=0).total("delivered")
        0
        """
        return sum(getattr(stream, name) for stream in self.streams)

    @property
    def balanced(self) -> bool:
        """Whether every tick is accounted for, once."""
        return not self.total("repeated") and all(
            (each.seq is None and not each.published)  # It has no numbers.
            or each.published == each.delivered + each.merged + each.skipped + each.gapped
            for each in self.streams
        )
