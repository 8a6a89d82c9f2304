"""The client side of the protocol, without I/O.

`ClientState` turns frames into ticks, events and notices, and requests into messages. After a
disconnection, `ResumePlanner` builds the messages that restore all subscriptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, Final, NamedTuple

from tickcast.client.accounts import Position, SequenceAccounts, StreamAccount
from tickcast.client.messages import (
    Event,
    Notice,
    decode_frame,
    encode_frame,
    parse_event,
    parse_tick,
    reading_frame,
    subprotocol_of,
)
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import SYMBOL_MAX, TICK_TYPES, StreamKey, Tick

# Servers accept messages of 64 KiB; the margin is for the `id` and other small fields.
MESSAGE_MAX_BYTES: Final = 60_000

Fields = dict[str, Any]
"""A message without its `id`."""


class Message(NamedTuple):
    """A message to send, and the `id` that the reply will carry."""

    id: int
    frame: str | bytes


class RequestedOptions(NamedTuple):
    """The options of a subscription request; None if not given."""

    conflate_ms: int | None = None
    slow: str | None = None
    # In nanoseconds since the Unix epoch.
    start: int | None = None

    def merged_into(self, earlier: RequestedOptions) -> RequestedOptions:
        """Merge these options into those of an existing subscription, keeping its start."""
        conflate_ms = earlier.conflate_ms if self.conflate_ms is None else self.conflate_ms
        return RequestedOptions(conflate_ms, self.slow or earlier.slow, earlier.start)


NO_OPTIONS: Final = RequestedOptions()
_Changes = dict[Subscription, RequestedOptions | None]


class ClientState:
    """State that a client needs to interpret messages and to resume after a disconnection."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.accounts = SequenceAccounts()
        # Whether the server is believed to know the extensions of this protocol.
        self.extended = True
        # The reconnect delay that the server requested before it shut down, or 0.
        self.retry_s = 0.0
        # The confirmed subscriptions, to be restored after a disconnection.
        self._requested: dict[Subscription, RequestedOptions] = {}
        # What `configure` has set, by the names in the protocol.
        self._settings: Fields = {}
        # What a successful reply changes, by the id of the request. None ends a subscription.
        self._pending: dict[int, _Changes] = {}
        self._pending_settings: dict[int, Fields] = {}
        # The id of the pending `list` that asks for the epoch, or 0.
        self._epoch_request = 0
        self._last_id = 0

    @property
    def subprotocol(self) -> str:
        """The subprotocol to offer in the handshake."""
        return subprotocol_of(self.encoding)

    def begin_connection(self, subprotocol: str | None) -> None:
        """Begin a new connection, on which the server accepted this subprotocol."""
        # Only a server that knows the subprotocol accepts it; others leave the header out.
        self.extended = subprotocol is not None
        self.retry_s = 0.0
        self._pending.clear()
        self._pending_settings.clear()
        self._epoch_request = 0

    # -- incoming messages

    def receive_frame(self, frame: str | bytes) -> tuple[list[Tick | Event], list[Notice]]:
        """Process one frame; return the ticks and events for the program, and the notices.

        Raises:
            ConnectionFailed: the server does not speak this protocol.
        """
        items: list[Tick | Event] = []
        notices: list[Notice] = []
        with reading_frame():
            for message in decode_frame(frame):
                if message["T"] in TICK_TYPES:
                    items += self.accounts.add_tick(parse_tick(message))
                else:
                    notices.append(message)
                    items += self._process_notice(message)
        return items, notices

    def _process_notice(self, notice: Notice) -> Iterable[Event]:
        match notice["T"]:
            case "gap" | "skipped":
                return self.accounts.add_notice(notice)
            case "shutdown":
                self.retry_s = notice["retry_ms"] / 1000
            case "subscription" | "configured" | "error":
                self._process_reply(notice)
            case _:
                event = parse_event(notice)
                return () if event is None else (event,)
        return ()

    def _process_reply(self, notice: Notice) -> None:
        if "id" not in notice and not self.extended and self._pending:
            # A server without extensions replies in order, but without ids.
            notice["id"] = next(iter(self._pending))
        id_ = notice.get("id", 0)
        changes = self._pending.pop(id_, {})
        settings = self._pending_settings.pop(id_, {})
        if id_ == self._epoch_request:
            self._epoch_request = 0
        if notice["T"] == "configured":
            self._settings.update(settings)
        if notice["T"] == "subscription":
            self._change_subscriptions(notice, changes)

    def _change_subscriptions(self, reply: Notice, changes: _Changes) -> None:
        before = self._requested.copy()
        # The list in the reply can't be used: after a disconnection, it names only what has been
        # restored so far.
        for subscription, options in changes.items():
            if options is None:
                self._requested.pop(subscription, None)
            elif subscription in before:
                self._requested[subscription] = options.merged_into(before[subscription])
            else:
                self._requested[subscription] = options
        self.accounts.end_runs_outside(self._requested)
        if "epoch" not in reply:
            return
        epoch = reply["epoch"]
        self.accounts.set_epoch(epoch)
        if "positions" not in reply:
            return
        self.accounts.set_positions(reply["positions"])
        covered_before = Coverage(before)
        for subscription, options in changes.items():
            channel, pattern = subscription
            if subscription.is_wildcard or options is None or options.start is not None:
                continue
            is_new = not covered_before.covers(StreamKey("", channel, pattern))
            if is_new and self.accounts.account(channel, pattern).seq is None:
                # A stream without a position has no published ticks yet.
                self.accounts.set_position(Position(channel, pattern, epoch, 0))

    # -- outgoing messages

    def subscribe(
        self,
        channels: Mapping[str, Iterable[str]],
        *,
        snapshot: bool = False,
        options: RequestedOptions = NO_OPTIONS,
        plain: bool = False,
    ) -> Message:
        """Return the message that adds subscriptions.

        Args:
            plain: add no options besides those given.
        """
        subscriptions = _subscriptions(channels)
        extra = {"snapshot": True} if snapshot else {}
        if self.extended and not plain:
            extra["positions"] = True
        fields = _subscribe(subscriptions, options, **extra)
        return self._request(fields, dict.fromkeys(subscriptions, options))

    def unsubscribe(self, channels: Mapping[str, Iterable[str]]) -> Message:
        """Return the message that ends subscriptions."""
        subscriptions = _subscriptions(channels)
        return self._request(_unsubscribe(subscriptions), dict.fromkeys(subscriptions))

    def configure(self, changes: Mapping[str, Any]) -> Message:
        """Return the message that changes the settings of this and all later connections.

        Args:
            changes: the settings to change, by their names in the protocol.
        """
        message = self._request({"action": "configure", **changes})
        self._pending_settings[message.id] = dict(changes)
        return message

    @property
    def needs_epoch(self) -> bool:
        """Whether a numbering has begun whose epoch is unknown and hasn't been requested."""
        return self.accounts.epoch_needed and not self._epoch_request and self.extended

    def request_epoch(self) -> Message | None:
        """Return a request for the epoch if it is needed; only one may be pending."""
        if not self.needs_epoch:
            return None
        self.accounts.epoch_needed = False
        message = self._request({"action": "list"})
        self._epoch_request = message.id
        return message

    def restore(self) -> list[Message]:
        """Return the messages that restore settings and subscriptions after a reconnect, in order.

        The settings come first, because they are the defaults for the subscriptions. Send each
        message after the reply to the one before.
        """
        settings = self._settings if self.extended else {}
        return [*([self.configure(settings)] if settings else []), *self._resubscribe()]

    def resume(
        self,
        channels: Mapping[str, Iterable[str]],
        positions: Iterable[Position],
        options: RequestedOptions = NO_OPTIONS,
    ) -> list[Message]:
        """Return the messages that resume from positions that the program has saved.

        Streams under a wildcard that have no position begin with the first retained tick. Send each
        message after the reply to the one before.
        """
        subscriptions = _subscriptions(channels)
        coverage = Coverage(subscriptions)
        self._requested.update(dict.fromkeys(subscriptions, options))
        for position in positions:
            if coverage.covers(StreamKey("", position.channel, position.symbol)):
                self.accounts.set_position(position)
        return self._resubscribe()

    def _resubscribe(self) -> list[Message]:
        if self.extended:
            self.accounts.confirm_epochs()
        else:
            self.accounts.mark_unresumed()
        accounts = self.accounts if self.extended else None
        planner = ResumePlanner(accounts, self._size_of, MESSAGE_MAX_BYTES)
        return [self._request(fields) for fields in planner.messages(self._requested)]

    def _size_of(self, fields: Fields) -> int:
        return len(encode(fields, self.encoding))

    def _request(self, fields: Fields, changes: _Changes | None = None) -> Message:
        """Give a message its `id`, and remember what to change if it succeeds."""
        self._last_id += 1
        self._pending[self._last_id] = changes or {}
        return Message(self._last_id, encode_frame({**fields, "id": self._last_id}, self.encoding))


class ResumePlanner:
    """Builds the messages that restore all subscriptions, each with its options and positions.

    Narrow subscriptions come first. Otherwise a wildcard's `"*": 0` would bring the whole history
    of a stream that is also named, and wanted only from a later point on.

    Positions that do not fit into one message are spread over as few as possible, because servers
    limit a client's messages and charge each by what it names.

    Args:
        accounts: the positions of the streams; None if the server does not understand positions.
        size_of: returns the size of a message on the wire, in bytes.
        max_bytes: the maximum size of a message.
    """

    def __init__(
        self, accounts: SequenceAccounts | None, size_of: Callable[[Fields], int], max_bytes: int
    ) -> None:
        self._accounts = accounts
        self._size_of = size_of
        self._max_bytes = max_bytes
        # Subscriptions that earlier messages have restored, with their streams' positions.
        self._restored: list[Subscription] = []

    def messages(self, requested: Mapping[Subscription, RequestedOptions]) -> Iterator[Fields]:
        """Yield the messages in order; send each after the reply to the one before."""

        def order(subscription: Subscription) -> tuple[int, str]:
            # `groupby` needs subscriptions with equal options next to each other.
            breadth = -len(subscription.pattern) if subscription.is_wildcard else -SYMBOL_MAX - 2
            return breadth, str(requested[subscription])

        for options, group in groupby(sorted(requested, key=order), requested.__getitem__):
            yield from self._restore_group(list(group), options)

    def _restore_group(
        self, group: list[Subscription], options: RequestedOptions
    ) -> Iterator[Fields]:
        message = self._message(group, options, self._resumable(group))
        if self._size_of(message) <= self._max_bytes:
            self._restored += group
            yield message
            return
        parts: list[Subscription] = []
        joined: list[Subscription] = []
        accounts: list[StreamAccount] = []
        size = 0
        for subscription, more in self._split(group, options, parts):
            size_alone = self._size_of(self._message([subscription], options, more))
            if joined and size + size_alone > self._max_bytes:
                # The sum overestimates the size of the joint message; measure it before giving up.
                joint = self._message([*joined, subscription], options, accounts + more)
                size = self._size_of(joint) - size_alone
                if size + size_alone > self._max_bytes:
                    yield self._message(joined, options, accounts)
                    joined, accounts, size = [], [], 0
            joined.append(subscription)
            accounts += more
            size += size_alone
        yield self._message(joined, options, accounts)
        yield from self._unsubscribe_from(parts)

    def _split(
        self, group: Iterable[Subscription], options: RequestedOptions, parts: list[Subscription]
    ) -> Iterator[tuple[Subscription, list[StreamAccount]]]:
        """Yield subscriptions with the accounts of their streams, small enough for one message.

        A wildcard with too many streams comes after its parts, which are added to `parts`. They are
        needed only until the whole wildcard is subscribed, because it covers the same streams.
        """
        for subscription in group:
            accounts = self._resumable([subscription])
            if subscription.is_wildcard and not self._fits(subscription, options, accounts):
                for part, some in self._parts(subscription, options, accounts):
                    parts.append(part)
                    yield part, some
                accounts = []
            self._restored.append(subscription)
            yield subscription, accounts

    def _parts(
        self, whole: Subscription, options: RequestedOptions, accounts: Iterable[StreamAccount]
    ) -> Iterator[tuple[Subscription, list[StreamAccount]]]:
        by_part: dict[Subscription, list[StreamAccount]] = {}
        size = len(whole.pattern)
        for account in accounts:
            # A part covers the symbols that also have the next character in common, if any.
            symbol = account.symbol
            pattern = symbol if len(symbol) < size else symbol[:size] + "*"
            by_part.setdefault(whole._replace(pattern=pattern), []).append(account)
        for part, some in sorted(by_part.items(), key=lambda item: item[0]):
            if part.is_wildcard and not self._fits(part, options, some):
                yield from self._parts(part, options, some)
            else:
                yield part, some

    def _unsubscribe_from(self, parts: list[Subscription]) -> Iterator[Fields]:
        message = _unsubscribe(parts)
        if len(parts) > 1 and self._size_of(message) > self._max_bytes:
            half = len(parts) // 2
            yield from self._unsubscribe_from(parts[:half])
            yield from self._unsubscribe_from(parts[half:])
        elif parts:
            yield message

    def _fits(
        self, subscription: Subscription, options: RequestedOptions, accounts: list[StreamAccount]
    ) -> bool:
        return self._size_of(self._message([subscription], options, accounts)) <= self._max_bytes

    def _resumable(self, subscriptions: list[Subscription]) -> list[StreamAccount]:
        if self._accounts is None:
            return []
        return self._accounts.resumable(subscriptions, self._restored)

    def _message(
        self,
        subscriptions: list[Subscription],
        options: RequestedOptions,
        accounts: Iterable[StreamAccount],
    ) -> Fields:
        if self._accounts is None:
            return _subscribe(subscriptions, options._replace(start=None))
        # One map per epoch. An empty epoch matches none, so the server reports a gap.
        by_epoch: dict[str, dict[str, Any]] = {}
        for account in accounts:
            positions = by_epoch.setdefault(account.epoch, {"epoch": account.epoch})
            positions.setdefault(account.channel, {})[account.symbol] = account.seq
        resume = list(by_epoch.values())
        wildcards = _by_channel(each for each in subscriptions if each.is_wildcard)
        if wildcards and options.start is None:
            # Request streams that have appeared since the disconnection from their first tick.
            zeros = {name: dict.fromkeys(patterns, 0) for name, patterns in wildcards.items()}
            resume.append({"epoch": "", **zeros})
        return _subscribe(subscriptions, options, resume=resume)


# -- symbols by channel


def merge_channels(
    channels: Mapping[str, Iterable[str]] | None,
    trades: Iterable[str] = (),
    quotes: Iterable[str] = (),
    bars: Iterable[str] = (),
) -> dict[str, list[str]]:
    """Combine the channel parameters into symbols by channel.

    >>> merge_channels({"bars:5s": ["ES"]}, trades=["ES", "NQ"])
    {'bars:5s': ['ES'], 'trades': ['ES', 'NQ'], 'quotes': [], 'bars': []}

    Raises:
        ValueError: symbols are a string, whose letters would be taken for symbols.
    """
    merged = {channel: _symbols(channel, given) for channel, given in (channels or {}).items()}
    for channel, given in (("trades", trades), ("quotes", quotes), ("bars", bars)):
        merged.setdefault(channel, []).extend(_symbols(channel, given))
    return merged


def _symbols(channel: str, given: Iterable[str]) -> list[str]:
    if isinstance(given, str):
        raise ValueError(
            f"{channel}: {given!r} is a string; a list of symbols is wanted, such as [{given!r}]"
        )
    return list(given)


def _subscriptions(channels: Mapping[str, Iterable[str]]) -> list[Subscription]:
    return [Subscription(channel, each) for channel in channels for each in channels[channel]]


def _by_channel(subscriptions: Iterable[Subscription]) -> dict[str, list[str]]:
    channels: dict[str, list[str]] = {}
    for channel, pattern in subscriptions:
        channels.setdefault(channel, []).append(pattern)
    return channels


def _subscribe(
    subscriptions: Iterable[Subscription], options: RequestedOptions, **extra: object
) -> Fields:
    given = {name: value for name, value in options._asdict().items() if value is not None}
    return {"action": "subscribe", **_by_channel(subscriptions), **given, **extra}


def _unsubscribe(subscriptions: Iterable[Subscription]) -> Fields:
    return {"action": "unsubscribe", **_by_channel(subscriptions)}
