"""Writes ticks to clients and counts each one for the server and for the client. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from feed.fanout.counters import Counters, Totals
from feed.fanout.encoded_ticks import EncodedTicks, WireFormat, pack_frames
from feed.fanout.outbox import Outbox
from feed.fanout.subscriber_group import SubscriberGroup

logger = logging.getLogger("tickcast.hub")


class FlushWriter:
    """The last step of the fan-out.

    Ticks that an outbox refuses go to its `absorb`. They are counted when the client receives them,
    or as not sent.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def to_audiences(
        self,
        letters: Iterable[tuple[Sequence[EncodedTicks], WireFormat, Iterable[SubscriberGroup]]],
    ) -> None:
        """Write once to each member of the audiences. This is the server's innermost loop."""
        ticks_out = conflated = frames_out = bytes_out = 0
        failed: list[Outbox] = []
        for pieces, form, audiences in letters:
            data, frames, sent, merged = pack_frames(pieces, form.encoding)
            taken = 0
            for audience in audiences:
                audience.sent += sent
                audience.merged += merged
                audience.bytes += len(data)
                for outbox in audience.members:
                    # This costs nothing unless it raises (zero-cost exceptions of Python 3.11).
                    # Without it, a bug in serving one client would make later ones miss ticks.
                    try:
                        if (write := outbox.write) is not None:
                            write(data)
                            taken += 1
                        elif outbox.offer(data):
                            taken += 1
                        else:
                            outbox.totals.bytes -= len(data)
                            outbox.absorb(pieces, audience.policy_of, form)
                    except Exception:
                        logger.exception("a bug in writing to a client, whose connection ends")
                        failed.append(outbox)
            ticks_out += taken * sent
            conflated += taken * merged
            frames_out += taken * frames
            bytes_out += taken * len(data)
        self._counters.add_sent(ticks_out, conflated, frames_out, bytes_out)
        for outbox in failed:
            outbox.fail()

    def to_member(
        self, outbox: Outbox, pieces: Sequence[EncodedTicks], audience: SubscriberGroup
    ) -> None:
        """Write pieces to one member only."""
        data, frames, sent, merged = pack_frames(pieces, audience.form.encoding)
        outbox.totals.add(Totals(sent, merged))
        if outbox.offer(data):
            outbox.totals.bytes += len(data)
            self._counters.add_sent(sent, merged, frames, len(data))
        else:
            outbox.absorb(pieces, audience.policy_of, audience.form)

    def of_history(self, outbox: Outbox, data: bytes, frames: int, ticks: int) -> None:
        """Write frames of ticks from history, made for one client or shared."""
        self._counters.history_out += ticks
        self._send_made(outbox, data, frames, ticks)

    def of_tape(self, outbox: Outbox, data: bytes, frames: int, ticks: int) -> None:
        """Write frames of ticks from a tape."""
        self._counters.replayed_out += ticks
        self._send_made(outbox, data, frames, ticks)

    def _send_made(self, outbox: Outbox, data: bytes, frames: int, ticks: int) -> None:
        outbox.totals.add(Totals(ticks))
        outbox.push(data)
        self._counters.add_sent(ticks, 0, frames, len(data))
