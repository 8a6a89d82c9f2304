"""Collect the pieces of one flush by audience, so that each gets them in one write. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from feed.fanout.encoded_ticks import EncodedTicks, TickBatch, WireFormat, encode_pieces
from feed.fanout.subscriber_group import AnyTap, Conflator, SubscriberGroup
from tickcast.wire.times import Instant


class PendingFlush:
    """The pieces of one flush, by audience.

    Attributes:
        settled: audiences that are no longer late in any conflation interval.
    """

    __slots__ = ("_touched", "_written_us", "settled")

    def __init__(self, now: Instant) -> None:
        self._written_us = now.wall_us
        self._touched: list[SubscriberGroup] = []
        self.settled: list[SubscriberGroup] = []

    def add(self, tap: AnyTap, chunk: TickBatch) -> None:
        """Add a chunk for every audience of a tap."""
        touched = self._touched
        for form, audiences in tap.audiences.items():
            pieces = encode_pieces(chunk, form, self._written_us)
            for audience in audiences:
                if not audience.gathered:
                    touched.append(audience)
                audience.gathered += pieces

    def add_conflated(self, tap: Conflator) -> None:
        """Add the latest tick for every audience of a conflated tap.

        For an audience that joined during the interval, the tick replaces fewer ticks.
        """
        late: list[tuple[SubscriberGroup, int]] = []
        for audiences in tap.audiences.values():
            late += [(each, each.known[tap]) for each in audiences if tap in each.known]
        for audience, _ in late:
            del tap.audiences[audience.form][audience]
        whole = tap.merged()
        if whole is not None:
            self.add(tap, whole)
        for audience, known in late:
            tap.audiences[audience.form][audience] = None
            del audience.known[tap]
            if not audience.known:
                self.settled.append(audience)
            if (own := tap.merged(known)) is not None:
                if not audience.gathered:
                    self._touched.append(audience)
                audience.gathered += encode_pieces(own, audience.form, self._written_us)
        tap.clear()

    def letters(
        self,
    ) -> Iterator[tuple[Sequence[EncodedTicks], WireFormat, Iterable[SubscriberGroup]]]:
        """The pieces to write, with their form and audience."""
        return ((each.pop_pending(), each.form, (each,)) for each in self._touched)
