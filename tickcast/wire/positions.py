"""A client's positions in its streams, as read from `resume` and sent in `positions`.

Both are one map for each epoch, such as `{"epoch":"…","trades":{"AAPL":1041},"quotes":{"*":0}}`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from tickcast.wire.errors import Fault, InvalidAction
from tickcast.wire.subscriptions import Coverage, PatternMap, Subscription, is_pattern
from tickcast.wire.ticks import CHANNELS, SEQ_MAX, StreamKey, sort_channels

# Maximum length of an epoch that a client may send, in characters.
EPOCH_MAX: Final = 64
_SHAPE: Final = 'it is {"epoch":…,"trades":{"AAPL":1041},…}, or a list of such maps'


class StreamPosition(NamedTuple):
    """The last tick of a stream that a client has received: its epoch and number."""

    epoch: str
    seq: int


# A wildcard's position applies to the streams that are not named.
Positions = PatternMap[StreamPosition]
NO_POSITIONS: Final[Positions] = PatternMap({})


def parse_positions(value: object, subscriptions: Iterable[Subscription]) -> Positions:
    """Parse the `resume` field.

    Raises:
        InvalidAction: it is malformed, or names streams that the subscriptions do not cover.
    """
    found: dict[Subscription, StreamPosition] = {}
    coverage = Coverage(subscriptions)
    for fields in value if isinstance(value, list) else [value]:
        for entry, position in _parse_map(fields):
            if entry in found:
                raise _invalid(f"{entry.channel} {entry.pattern} appears twice")
            if not coverage.covers_pattern(entry):
                raise _invalid(
                    f"this message does not subscribe to {entry.channel} {entry.pattern}"
                )
            found[entry] = position
    return PatternMap(found)


def _parse_map(fields: object) -> Iterable[tuple[Subscription, StreamPosition]]:
    if not isinstance(fields, dict):
        raise _invalid(_SHAPE)
    epoch = fields.get("epoch")
    if not isinstance(epoch, str) or len(epoch) > EPOCH_MAX:
        raise _invalid(f"epoch is a string of at most {EPOCH_MAX} characters")
    for channel, seqs in fields.items():
        if channel == "epoch":
            continue
        if channel not in CHANNELS or not isinstance(seqs, dict):
            raise _invalid(_SHAPE)
        for pattern, seq in seqs.items():
            if not (isinstance(pattern, str) and is_pattern(pattern)):
                raise _invalid(f"{ascii(pattern)[:40]} is not a symbol")
            entry = Subscription(channel, pattern)
            if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq <= SEQ_MAX:
                raise _invalid(f"the position of {pattern} is an integer from 0 to {SEQ_MAX}")
            if entry.is_wildcard and seq:
                # Each stream has its own numbers, so one number can't be right for several.
                raise _invalid(f"the position of {pattern} can only be 0")
            yield entry, StreamPosition(epoch, seq)


def build_positions(streams: Iterable[tuple[StreamKey, tuple[str, int]]]) -> list[dict[str, Any]]:
    """Build the `positions` field, in the form of `resume`.

    Args:
        streams: sorted by key.
    """
    maps: dict[str, dict[str, dict[str, int]]] = {}
    # There may be 10,000 streams. Look up the inner map only when the epoch or channel changes.
    current: tuple[str, str] | None = None
    seqs: dict[str, int] = {}
    for (_, channel, symbol), (epoch, seq) in streams:
        if current != (epoch, channel):
            current = (epoch, channel)
            seqs = maps.setdefault(epoch, {}).setdefault(channel, {})
        seqs[symbol] = seq
    return [
        {
            "epoch": epoch,
            **{channel: maps[epoch][channel] for channel in sort_channels(maps[epoch])},
        }
        for epoch in sorted(maps)
    ]


def _invalid(detail: str) -> InvalidAction:
    return InvalidAction(Fault.INVALID_SYNTAX, f"resume: {detail}")
