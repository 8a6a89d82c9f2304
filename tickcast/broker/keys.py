"""The names of all keys and channels that Tickcast uses in Redis.

All keys of one stream share a hash tag, so that one publish uses one slot of a cluster. The parts
of a tag are joined by `/`, which feed and channel names can't contain; a symbol may contain any of
the other characters.

Redis separates the keys of its databases, but not their channels: a message published in one
database reaches subscribers in all of them. So the names of channels include the database, except
in database 0; see `channel_in`.
"""

from __future__ import annotations

from typing import Final

from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import Time

_PREFIX: Final = "tickcast:"
_PREFIX_ELSEWHERE: Final = "tickcast@"
# Glob that matches the history of every stream.
ALL_HISTORIES: Final = f"{_PREFIX}*:history"
# Sorted set: the servers whose connections are counted, each with its expiry time. `seats` is an
# earlier name for connections. Servers that share a store must agree on it, so it stays.
CONNECTION_SERVERS: Final = f"{_PREFIX}seats:{{seats}}:servers"
# Prefix of the keys that count connection attempts; the `limits` library completes them.
ATTEMPTS: Final = f"{_PREFIX}limits"


def meta(stream: StreamKey) -> str:
    """Hash: `epoch`, `seq` and `latest` of the stream."""
    return f"{_PREFIX}{{{'/'.join(stream)}}}:meta"


def history(stream: StreamKey) -> str:
    """Redis stream: the retained batches, with IDs `last seq-publish time in ms`."""
    return f"{_PREFIX}{{{'/'.join(stream)}}}:history"


def ticks(stream: StreamKey) -> str:
    """Channel: every batch as it is published."""
    return f"{_PREFIX}{{{'/'.join(stream)}}}:ticks"


def epoch(feed: str) -> str:
    """String: the feed's current epoch."""
    return f"{_PREFIX}{{{feed}}}:epoch"


def directory(feed: str) -> str:
    """Set: `channel/symbol` of every stream ever published in the feed."""
    return f"{_PREFIX}{{{feed}}}:streams"


def announcements(feed: str) -> str:
    """Channel: `channel/symbol` of each stream when it joins the directory."""
    return f"{_PREFIX}{{{feed}}}:announcements"


def maker(feed: str, channel: str) -> str:
    """String: the program that makes a derived channel of the feed, such as bars."""
    return f"{_PREFIX}{{{feed}}}:maker:{channel}"


def replay(feed: str) -> str:
    """Hash: the `owner` and `state` of the feed's replay, while there is one."""
    return f"{_PREFIX}{{{feed}}}:replay"


def replayed(feed: str) -> str:
    """Hash: the publishers that replay into the feed, and `since`.

    `since` is the time from which the feed has held only replays, in milliseconds by Redis's clock.
    See `tickcast.broker.replays.ReplayedStreams`.
    """
    return f"{_PREFIX}{{{feed}}}:replayed"


def replay_states(feed: str) -> str:
    """Channel: the state of the feed's replay, on every change and once a second."""
    return f"{_PREFIX}{{{feed}}}:replay:states"


def replay_commands(feed: str) -> str:
    """Channel: commands to the feed's replay."""
    return f"{_PREFIX}{{{feed}}}:replay:commands"


def replay_replies(feed: str) -> str:
    """Channel: the replay's replies to commands."""
    return f"{_PREFIX}{{{feed}}}:replay:replies"


def idempotency(feed: str, digest: str) -> str:
    """The record of a request to publish, under a digest of its idempotency key."""
    return f"{_PREFIX}{{{feed}}}:request:{digest}"


def heartbeat(name: str) -> str:
    """Channel: messages from a server to itself, to check that messages arrive."""
    return f"{_PREFIX}heartbeat:{name}"


def connections(group: str) -> str:
    """Hash: the number of connections in a group, by server."""
    return f"{_PREFIX}seats:{{seats}}:{group}"


def channel_in(database: int, channel: str) -> str:
    """Return the name of a channel in a database; `channel` is its name in database 0.

    >>> channel_in(0, epoch("live")), channel_in(1, epoch("live"))
    ('tickcast:{live}:epoch', 'tickcast@1:{live}:epoch')
    """
    if not database:
        return channel
    return f"{_PREFIX_ELSEWHERE}{database}:{channel.removeprefix(_PREFIX)}"


def channel_in_first(channel: str) -> str:
    """Return the name in database 0 of a channel of any database."""
    if channel.startswith(_PREFIX_ELSEWHERE):
        return f"{_PREFIX}{channel.partition(':')[2]}"
    return channel


def to_member(stream: StreamKey) -> str:
    """Return a stream's entry in its feed's directory."""
    return f"{stream.channel}/{stream.symbol}"


def from_member(feed: str, member: str) -> StreamKey:
    """Return the stream of a directory entry."""
    channel, _, symbol = member.partition("/")
    return StreamKey(feed, channel, symbol)


def sortable(time: Time) -> str:
    """Return a time as 16 hexadecimal digits whose text order is the order of times.

    The Lua scripts compare times as text because Lua's numbers would lose the last digits.
    """
    return f"{time + 2**63:016x}"
