"""Access rights in Redis for each kind of user, and the aclfile that grants them.

A user is granted commands on keys and channels, one kind of key at a time: the right to write one
kind of key does not include another kind. Each grant is a selector (Redis ACL, "Selectors"): Redis
accepts a command if a single selector allows it with all of its keys and channels. The commands of
a Lua script are checked against its user's rights too, and the keys that the script declares count
as keys of EVALSHA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from tickcast.broker import keys
from tickcast.wire.ticks import StreamKey

PUBLISHER: Final = "tickcast-publisher"
BAR_MAKER: Final = "tickcast-bars"
SERVER: Final = "tickcast-server"
READER: Final = "tickcast-reader"
ADMIN: Final = "default"
ANY: Final = "*"
"""Matches every feed."""


class AclRule(NamedTuple):
    """Commands that a user may run on some keys and channels, which are given as patterns.

    Attributes:
        commands: separated by spaces; a subcommand is written `command|subcommand`.
        keys: keys that may be read and written.
        read: keys that may only be read.
    """

    commands: str
    keys: Sequence[str] = ()
    read: Sequence[str] = ()
    channels: Sequence[str] = ()

    def rules(self) -> str:
        """Return the grant as ACL rules."""
        return " ".join(
            [
                *(f"~{pattern}" for pattern in self.keys),
                *(f"%R~{pattern}" for pattern in self.read),
                *(f"&{pattern}" for pattern in self.channels),
                *(f"+{command}" for command in self.commands.split()),
            ]
        )


class _Names(NamedTuple):
    """Patterns for the keys and channels of some feeds, by kind."""

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


# Redis 7.0 does not start with an aclfile that names a command it lacks, so use only its commands.
_CONNECT: Final = "client|setname script|load"


def users(feeds: Sequence[str] = (), database: int = 0) -> dict[str, list[AclRule]]:
    """Return all users with their grants. The first grant of each user has no keys.

    Args:
        feeds: the feeds to grant access to, each with a separate publisher and bar maker. If
            empty, one publisher and one bar maker have access to every feed.
        database: the database whose channels they may use. Redis can't limit keys to a database.
    """
    everything = _names(feeds or (ANY,))
    publishers = {publisher_of(feed): _publisher(_names([feed])) for feed in feeds or (ANY,)}
    makers = {bar_maker_of(feed): _bar_maker(feed) for feed in feeds or (ANY,)}
    found = {**publishers, **makers, SERVER: _server(everything), READER: _reader(everything)}
    return {user: _in_database(grants, database) for user, grants in found.items()}


def _in_database(grants: list[AclRule], database: int) -> list[AclRule]:
    if not database:
        return grants
    connect, *others = [
        grant._replace(channels=[keys.channel_in(database, each) for each in grant.channels])
        for grant in grants
    ]
    return [connect._replace(commands=f"{connect.commands} select"), *others]


def publisher_of(feed: str) -> str:
    """Return the user name of a feed's publisher."""
    return PUBLISHER if feed == ANY else f"{PUBLISHER}-{feed}"


def bar_maker_of(feed: str) -> str:
    """Return the user name of a feed's bar maker."""
    return BAR_MAKER if feed == ANY else f"{BAR_MAKER}-{feed}"


def rules(grants: Sequence[AclRule]) -> list[str]:
    """Return the arguments of `ACL SETUSER` for a user, without its password."""
    first, *others = (grant.rules() for grant in grants)
    return ["reset", "on", *first.split(), *(f"({words})" for words in others)]


def aclfile(feeds: Sequence[str] = (), database: int = 0) -> str:
    """Return an aclfile with placeholders for the passwords.

    Redis rejects the file until they are filled in. It includes the user `default`, with all rights
    and a password: without an entry, Redis would give that user all rights and ask for no password.
    """
    lines = [f"user {ADMIN} reset on {placeholder(ADMIN)} ~* &* +@all"]
    for name, grants in users(feeds, database).items():
        reset, on, *rest = rules(grants)
        lines.append(" ".join(["user", name, reset, on, placeholder(name), *rest]))
    return "".join(f"{line}\n" for line in lines)


def placeholder(user: str) -> str:
    """Return the placeholder for the SHA-256 of a user's password (64 hexadecimal digits)."""
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


def _publisher(names: _Names) -> list[AclRule]:
    """A publisher may also replay into its feeds, and control their replays."""
    return [*_publishing(names), *_replaying(names)]


def _publishing(names: _Names) -> list[AclRule]:
    return [
        AclRule(f"{_CONNECT} info time"),
        AclRule(
            "evalsha", keys=[*names.metas, *names.histories, *names.epochs, *names.directories]
        ),
        AclRule("hmget hlen hgetall hdel hset", keys=names.metas),
        AclRule("xadd xrange xdel pexpire del", keys=names.histories),
        AclRule("get set persist", keys=names.epochs),
        AclRule("smembers sadd", keys=names.directories),
        AclRule("publish", channels=[*names.ticks, *names.announcements]),
    ]


def _replaying(names: _Names) -> list[AclRule]:
    steering = [*names.replay_commands, *names.replay_replies]
    return [
        AclRule("hget", keys=names.metas),
        AclRule("evalsha hget hset pexpire del", keys=names.replays),
        AclRule("evalsha hgetall hset hsetnx del", keys=names.replayed),
        AclRule("publish", channels=[*names.replay_states, *steering]),
        AclRule("subscribe", channels=steering),
    ]


def _bar_maker(feed: str) -> list[AclRule]:
    """A bar maker reads trades and publishes only bars."""
    bars, trades = _names([feed], "bars*"), _names([feed], "trades")
    makers, heartbeats = [keys.maker(feed, "bars*")], [keys.heartbeat(ANY)]
    connect, *publishing = _publishing(bars)
    return [
        connect,
        *publishing,
        AclRule("evalsha get set del", keys=makers),
        AclRule("evalsha_ro", read=[*trades.metas, *trades.histories]),
        AclRule("hmget", read=trades.metas),
        AclRule("xrange", read=trades.histories),
        AclRule("subscribe", channels=[*trades.ticks, *trades.announcements, *heartbeats]),
        AclRule("publish", channels=heartbeats),
    ]


def _server(names: _Names) -> list[AclRule]:
    heartbeats = [keys.heartbeat(ANY)]
    seats, attempts = keys.seats(ANY), f"{keys.ATTEMPTS}:{ANY}"
    return [
        AclRule(f"{_CONNECT} info ping time unsubscribe"),
        AclRule("evalsha_ro", read=[*names.metas, *names.histories]),
        AclRule("evalsha", keys=[*names.metas, *names.histories, *names.epochs]),
        AclRule("hmget hget hdel hset", keys=names.metas),
        AclRule("xrange", read=names.histories),
        AclRule("del", keys=names.histories),
        AclRule("get set", keys=names.epochs),
        AclRule("smembers", read=names.directories),
        AclRule("hget", read=names.replays),
        AclRule(
            "subscribe",
            channels=[
                *(*names.ticks, *names.announcements, *heartbeats),
                *(*names.replay_states, *names.replay_replies),
            ],
        ),
        AclRule("publish", channels=[*heartbeats, *names.replay_commands]),
        AclRule("evalsha", keys=[keys.SEATED_SERVERS, seats, attempts]),
        AclRule("zadd zscore zrem zremrangebyscore", keys=[keys.SEATED_SERVERS]),
        AclRule("hgetall hset hdel expire", keys=[seats]),
        AclRule("get set exists incrby pttl rename", keys=[attempts]),
    ]


def _reader(names: _Names) -> list[AclRule]:
    return [
        AclRule(f"{_CONNECT} ping unsubscribe punsubscribe"),
        AclRule("evalsha_ro", read=[*names.metas, *names.histories]),
        AclRule("hget hmget hgetall", read=names.metas),
        AclRule("xrange xrevrange xlen xread", read=names.histories),
        AclRule("get", read=names.epochs),
        AclRule("smembers sismember scard", read=names.directories),
        AclRule("hget", read=names.replays),
        AclRule(
            "subscribe psubscribe",
            channels=[*names.ticks, *names.announcements, *names.replay_states],
        ),
    ]
