"""The names of everything Tickcast keeps in Redis.

All keys of one stream share a hash tag, so that one publish touches one slot of a cluster. The
parts of a tag are joined by `/`, which neither feed nor channel names contain: a symbol may hold
any of the other characters.

Redis separates the keys of its databases, but not their channels: a message published in one
reaches subscribers in all. So the names of channels include the database, except in the first:
`channel_in`.
"""

from __future__ import annotations

from typing import Final

from feed.ticks import StreamKey
from feed.times import Time

_PREFIX: Final = "tickcast:"
_PREFIX_ELSEWHERE: Final = "tickcast@"
ALL_HISTORIES: Final = f"{_PREFIX}*:history"
"""Glob that matches the history of every stream."""
SEATED_SERVERS: Final = f"{_PREFIX}seats:{{seats}}:servers"
"""Sorted set: the servers whose connections count, by the time until which they do."""
ATTEMPTS: Final = f"{_PREFIX}limits"
"""What the keys begin with that count attempts to connect; the `limits` library completes them."""


def meta(stream: StreamKey) -> str:
    """Hash: `epoch`, `seq` and `latest` of the stream."""
    return f"{_PREFIX}{{{'/'.join(stream)}}}:meta"


def history(stream: StreamKey) -> str:
    """Redis stream: the batches retained, with IDs `last seq-publish time in ms`."""
    return f"{_PREFIX}{{{'/'.join(stream)}}}:history"


def ticks(stream: StreamKey) -> str:
    """Channel: every batch as it is published."""
    return f"{_PREFIX}{{{'/'.join(stream)}}}:ticks"


def epoch(feed: str) -> str:
    """String: the feed's current epoch."""
    return f"{_PREFIX}{{{feed}}}:epoch"


def directory(feed: str) -> str:
    """Set: `channel/symbol` of every stream that was ever published in the feed."""
    return f"{_PREFIX}{{{feed}}}:streams"


def announcements(feed: str) -> str:
    """Channel: `channel/symbol` of each stream when it joins the directory."""
    return f"{_PREFIX}{{{feed}}}:announcements"


def maker(feed: str, channel: str) -> str:
    """String: which program makes a channel of the feed out of others, such as bars."""
    return f"{_PREFIX}{{{feed}}}:maker:{channel}"


def replay(feed: str) -> str:
    """Hash: who plays into the feed (`owner`), and its `state`, while it does."""
    return f"{_PREFIX}{{{feed}}}:replay"


def replayed(feed: str) -> str:
    """Hash: the publishers that replay into the feed, and `since` when it holds nothing else.

    `since` is in milliseconds by Redis's clock. See `feed.broker.replays.Origins`.
    """
    return f"{_PREFIX}{{{feed}}}:replayed"


def replay_states(feed: str) -> str:
    """Channel: the state of the feed's replay, on every change and once a second."""
    return f"{_PREFIX}{{{feed}}}:replay:states"


def replay_commands(feed: str) -> str:
    """Channel: commands to the feed's replay."""
    return f"{_PREFIX}{{{feed}}}:replay:commands"


def replay_replies(feed: str) -> str:
    """Channel: its replies to them."""
    return f"{_PREFIX}{{{feed}}}:replay:replies"


def heartbeat(name: str) -> str:
    """Channel: a server's messages to itself, by which it knows that messages come."""
    return f"{_PREFIX}heartbeat:{name}"


def seats(room: str) -> str:
    """Hash: how many connections each server has that count together."""
    return f"{_PREFIX}seats:{{seats}}:{room}"


def channel_in(database: int, channel: str) -> str:
    """What a channel is called in a database; `channel` is its name in database 0.

    >>> channel_in(0, epoch("live")), channel_in(1, epoch("live"))
    ('tickcast:{live}:epoch', 'tickcast@1:{live}:epoch')
    """
    if not database:
        return channel
    return f"{_PREFIX_ELSEWHERE}{database}:{channel.removeprefix(_PREFIX)}"


def channel_in_first(channel: str) -> str:
    """The name in database 0 of a channel that may be of another one."""
    if channel.startswith(_PREFIX_ELSEWHERE):
        return f"{_PREFIX}{channel.partition(':')[2]}"
    return channel


def to_member(stream: StreamKey) -> str:
    """A stream's entry in its feed's directory."""
    return f"{stream.channel}/{stream.symbol}"


def from_member(feed: str, member: str) -> StreamKey:
    """The stream that a directory entry stands for."""
    channel, _, symbol = member.partition("/")
    return StreamKey(feed, channel, symbol)


def sortable(time: Time) -> str:
    """A time in a form whose order as text is the order of times: 16 hexadecimal digits.

    Redis's scripts compare it; as a number it would lose its last digits there.
    """
    return f"{time + 2**63:016x}"
