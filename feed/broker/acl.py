"""What each kind of user may do in Redis: the one place that says so, and the lines of an aclfile.

A user is granted commands on keys and channels, one kind of key at a time: a right to write one
kind is none to write another. Each grant is a selector (Redis ACL, "Selectors"): a command passes
where one selector allows it with all of its keys and channels. What a Lua script does is held to
its user's rights as well, and the keys that it declares count as keys of EVALSHA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from feed.broker import keys
from feed.ticks import StreamKey

PUBLISHER: Final = "tickcast-publisher"
BAR_MAKER: Final = "tickcast-bars"
SERVER: Final = "tickcast-server"
READER: Final = "tickcast-reader"
ADMIN: Final = "default"
ANY: Final = "*"
"""Stands for every feed."""


class Grant(NamedTuple):
    """Commands that may be used on the same keys and channels, given as patterns.

    Attributes:
        commands: with spaces between; a subcommand as `command|subcommand`.
        keys: to be read and written.
        read: to be read alone.
    """

    commands: str
    keys: Sequence[str] = ()
    read: Sequence[str] = ()
    channels: Sequence[str] = ()

    def rules(self) -> str:
        """The grant as ACL rules."""
        return " ".join(
            [
                *(f"~{pattern}" for pattern in self.keys),
                *(f"%R~{pattern}" for pattern in self.read),
                *(f"&{pattern}" for pattern in self.channels),
                *(f"+{command}" for command in self.commands.split()),
            ]
        )


class _Names(NamedTuple):
    """Patterns of all that belongs to some feeds, by kind."""

    metas: list[str]
    histories: list[str]
    epochs: list[str]
    directories: list[str]
    ticks: list[str]
    announcements: list[str]
    replays: list[str]
    replayed: list[str]
    replay_states: list[str]
    replay_commands: list[str]
    replay_replies: list[str]


# All of it is known to Redis 7.0, which does not start with a file that names a command it lacks.
_CONNECT: Final = "client|setname script|load"


def users(feeds: Sequence[str] = (), database: int = 0) -> dict[str, list[Grant]]:
    """The users and what each may do: the first grant of each goes without keys.

    Args:
        feeds: these alone, each with a publisher and a maker of bars of its own; none stands for
            every feed, with one of each for all.
        database: whose channels they may use. Redis grants keys in all databases alike.
    """
    everything = _names(feeds or (ANY,))
    publishers = {publisher_of(feed): _publisher(_names([feed])) for feed in feeds or (ANY,)}
    makers = {bar_maker_of(feed): _bar_maker(feed) for feed in feeds or (ANY,)}
    found = {**publishers, **makers, SERVER: _server(everything), READER: _reader(everything)}
    return {user: _in_database(grants, database) for user, grants in found.items()}


def _in_database(grants: list[Grant], database: int) -> list[Grant]:
    if not database:
        return grants
    connect, *others = [
        grant._replace(channels=[keys.channel_in(database, each) for each in grant.channels])
        for grant in grants
    ]
    return [connect._replace(commands=f"{connect.commands} select"), *others]


def publisher_of(feed: str) -> str:
    """The name of a feed's publisher."""
    return PUBLISHER if feed == ANY else f"{PUBLISHER}-{feed}"


def bar_maker_of(feed: str) -> str:
    """The name of whoever makes a feed's bars."""
    return BAR_MAKER if feed == ANY else f"{BAR_MAKER}-{feed}"


def rules(grants: Sequence[Grant]) -> list[str]:
    """What `ACL SETUSER` is given for a user, but for its password; one element each."""
    first, *others = (grant.rules() for grant in grants)
    return ["reset", "on", *first.split(), *(f"({words})" for words in others)]


def aclfile(feeds: Sequence[str] = (), database: int = 0) -> str:
    """An aclfile in which each password is left to be filled in, else Redis does not take it.

    The user `default` is in it, with all rights and a password: where a file does not name it, it
    needs none, and everybody is in charge.
    """
    lines = [f"user {ADMIN} reset on {placeholder(ADMIN)} ~* &* +@all"]
    for name, grants in users(feeds, database).items():
        reset, on, *rest = rules(grants)
        lines.append(" ".join(["user", name, reset, on, placeholder(name), *rest]))
    return "".join(f"{line}\n" for line in lines)


def placeholder(user: str) -> str:
    """What stands where the SHA-256 of the user's password belongs, in 64 hexadecimal digits."""
    return f"#SHA256-OF-THE-PASSWORD-OF-{user}"


def _names(feeds: Sequence[str], channel: str = ANY) -> _Names:
    # A feed's name holds no `/` and no character that is special in a pattern.
    streams = [StreamKey(feed, channel, ANY) for feed in feeds]
    return _Names(
        metas=[keys.meta(stream) for stream in streams],
        histories=[keys.history(stream) for stream in streams],
        epochs=[keys.epoch(feed) for feed in feeds],
        directories=[keys.directory(feed) for feed in feeds],
        ticks=[keys.ticks(stream) for stream in streams],
        announcements=[keys.announcements(feed) for feed in feeds],
        replays=[keys.replay(feed) for feed in feeds],
        replayed=[keys.replayed(feed) for feed in feeds],
        replay_states=[keys.replay_states(feed) for feed in feeds],
        replay_commands=[keys.replay_commands(feed) for feed in feeds],
        replay_replies=[keys.replay_replies(feed) for feed in feeds],
    )


def _publisher(names: _Names) -> list[Grant]:
    """Whoever publishes into a feed may also replay into it, and steer what is replayed."""
    return [*_publishing(names), *_replaying(names)]


def _publishing(names: _Names) -> list[Grant]:
    return [
        Grant(f"{_CONNECT} info time"),
        Grant("evalsha", keys=[*names.metas, *names.histories, *names.epochs, *names.directories]),
        Grant("hmget hlen hgetall hdel hset", keys=names.metas),
        Grant("xadd xrange xdel pexpire del", keys=names.histories),
        Grant("get set persist", keys=names.epochs),
        Grant("smembers sadd", keys=names.directories),
        Grant("publish", channels=[*names.ticks, *names.announcements]),
    ]


def _replaying(names: _Names) -> list[Grant]:
    steering = [*names.replay_commands, *names.replay_replies]
    return [
        Grant("hget", keys=names.metas),
        Grant("evalsha hget hset pexpire del", keys=names.replays),
        Grant("evalsha hgetall hset hsetnx del", keys=names.replayed),
        Grant("publish", channels=[*names.replay_states, *steering]),
        Grant("subscribe", channels=steering),
    ]


def _bar_maker(feed: str) -> list[Grant]:
    """A publisher of bars alone, who reads trades."""
    bars, trades = _names([feed], "bars*"), _names([feed], "trades")
    makers, heartbeats = [keys.maker(feed, "bars*")], [keys.heartbeat(ANY)]
    connect, *publishing = _publishing(bars)
    return [
        connect,
        *publishing,
        Grant("evalsha get set del", keys=makers),
        Grant("evalsha_ro", read=[*trades.metas, *trades.histories]),
        Grant("hmget", read=trades.metas),
        Grant("xrange", read=trades.histories),
        Grant("subscribe", channels=[*trades.ticks, *trades.announcements, *heartbeats]),
        Grant("publish", channels=heartbeats),
    ]


def _server(names: _Names) -> list[Grant]:
    heartbeats = [keys.heartbeat(ANY)]
    seats, attempts = keys.seats(ANY), f"{keys.ATTEMPTS}:{ANY}"
    return [
        Grant(f"{_CONNECT} info ping time unsubscribe"),
        Grant("evalsha_ro", read=[*names.metas, *names.histories]),
        Grant("evalsha", keys=[*names.metas, *names.histories, *names.epochs]),
        Grant("hmget hget hdel hset", keys=names.metas),
        Grant("xrange", read=names.histories),
        Grant("del", keys=names.histories),
        Grant("get set", keys=names.epochs),
        Grant("smembers", read=names.directories),
        Grant("hget", read=names.replays),
        Grant(
            "subscribe",
            channels=[
                *(*names.ticks, *names.announcements, *heartbeats),
                *(*names.replay_states, *names.replay_replies),
            ],
        ),
        Grant("publish", channels=[*heartbeats, *names.replay_commands]),
        Grant("evalsha", keys=[keys.SEATED_SERVERS, seats, attempts]),
        Grant("zadd zscore zrem zremrangebyscore", keys=[keys.SEATED_SERVERS]),
        Grant("hgetall hset hdel expire", keys=[seats]),
        Grant("get set exists incrby pttl rename", keys=[attempts]),
    ]


def _reader(names: _Names) -> list[Grant]:
    return [
        Grant(f"{_CONNECT} ping unsubscribe punsubscribe"),
        Grant("evalsha_ro", read=[*names.metas, *names.histories]),
        Grant("hget hmget hgetall", read=names.metas),
        Grant("xrange xrevrange xlen xread", read=names.histories),
        Grant("get", read=names.epochs),
        Grant("smembers sismember scard", read=names.directories),
        Grant("hget", read=names.replays),
        Grant(
            "subscribe psubscribe",
            channels=[*names.ticks, *names.announcements, *names.replay_states],
        ),
    ]
