"""Reports of a client's accounting: totals by stream, and whether they balance."""

from __future__ import annotations

from typing import NamedTuple


class StreamReport(NamedTuple):
    """The accounting of one stream; the fields are those of `Book`."""

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
    """The accounting of all streams that a client has seen, sorted, and its reconnects."""

    streams: tuple[StreamReport, ...]
    reconnects: int

    def total(self, name: str) -> int:
        """Return the sum of one field, such as `delivered`, over all streams.

        >>> from clients.books import Books
        >>> Books().report(reconnects=0).total("delivered")
        0
        """
        return sum(getattr(stream, name) for stream in self.streams)

    @property
    def balanced(self) -> bool:
        """Whether every tick is accounted for exactly once."""
        return not self.total("repeated") and all(
            (each.seq is None and not each.published)  # Its ticks are unnumbered.
            or each.published == each.delivered + each.merged + each.skipped + each.gapped
            for each in self.streams
        )
