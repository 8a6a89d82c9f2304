"""A client's positions in its streams, as read from `resume` and sent in `positions`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from tickcast.wire.errors import Fault, InvalidAction
from tickcast.wire.subscriptions import Coverage, PatternMap, Subscription, is_pattern
from tickcast.wire.ticks import CHANNELS, SEQ_MAX, StreamKey, sort_channels

EPOCH_MAX: Final = 64
"""Maximum length of an epoch that a client may send, in characters."""
_FORM: Final = 'it is {"epoch":…,"trades":{"AAPL":1041},…}, or a list of such maps'


class StreamPosition(NamedTuple):
    """The last tick of a stream that a client has received: its epoch and number."""

    epoch: str
    seq: int


class Positions(PatternMap[StreamPosition]):
    """Positions by stream. A wildcard's position applies to streams that are not named."""

    __slots__ = ()

    @property
    def symbols(self) -> frozenset[Subscription]:
        """The streams that are given by name, not by a wildcard."""
        return frozenset(each for each in self._values if not each.is_wildcard)


NO_POSITIONS: Final = Positions({})


def parse_positions(value: object, subscriptions: Iterable[Subscription]) -> Positions:
    """Parse the `resume` field: one map for each epoch.

    Raises:
        InvalidAction: it is malformed, or names streams that the subscriptions do not cover.
    """
    found: dict[Subscription, StreamPosition] = {}
    coverage = Coverage(subscriptions)
    for fields in value if isinstance(value, list) else [value]:
        for entry, position in _parse_map(fields):
            if entry in found:
                raise _wrong(f"{entry.channel} {entry.pattern} stands twice")
            if not coverage.covers_pattern(entry):
                raise _wrong(f"this message does not subscribe to {entry.channel} {entry.pattern}")
            found[entry] = position
    return Positions(found)


def _parse_map(fields: object) -> Iterable[tuple[Subscription, StreamPosition]]:
    if not isinstance(fields, dict):
        raise _wrong(_FORM)
    epoch = fields.get("epoch")
    if not isinstance(epoch, str) or len(epoch) > EPOCH_MAX:
        raise _wrong(f"epoch is a string of at most {EPOCH_MAX} characters")
    for channel, seqs in fields.items():
        if channel == "epoch":
            continue
        if channel not in CHANNELS or not isinstance(seqs, dict):
            raise _wrong(_FORM)
        for pattern, seq in seqs.items():
            if not (isinstance(pattern, str) and is_pattern(pattern)):
                raise _wrong(f"{ascii(pattern)[:40]} is no symbol")
            entry = Subscription(channel, pattern)
            if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq <= SEQ_MAX:
                raise _wrong(f"the position of {pattern} is an integer from 0 to {SEQ_MAX}")
            if entry.is_wildcard and seq:
                raise _wrong(f"the position of {pattern} can only be 0")
            yield entry, StreamPosition(epoch, seq)


def build_positions(
    streams: Iterable[tuple[StreamKey, tuple[str, int]]],
) -> list[dict[str, Any]]:
    """Build positions for a message: one map for each epoch, in the form of `resume`.

    Args:
        streams: sorted by key.
    """
    maps: dict[str, dict[str, dict[str, int]]] = {}
    place: tuple[str, str] | None = None
    seqs: dict[str, int] = {}
    for (_, channel, symbol), (epoch, seq) in streams:
        if place != (epoch, channel):
            place = (epoch, channel)
            seqs = maps.setdefault(epoch, {}).setdefault(channel, {})
        seqs[symbol] = seq
    return [
        {
            "epoch": epoch,
            **{channel: maps[epoch][channel] for channel in sort_channels(maps[epoch])},
        }
        for epoch in sorted(maps)
    ]


def _wrong(detail: str) -> InvalidAction:
    return InvalidAction(Fault.INVALID_SYNTAX, f"resume: {detail}")
