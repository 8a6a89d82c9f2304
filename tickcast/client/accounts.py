"""Sequence accounting: what happened to every tick of every stream, and where to resume.

Section 5 of the protocol sets the rule: each published tick is delivered, merged into a later one,
skipped, or part of a gap. A tick that is none of these is missing, which a correct server never
causes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple

from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import CHANNELS, StreamKey, Tick, channel_of

# Bounds the memory of a client that sees ever new symbols, such as options of each expiry.
STREAMS_MAX: Final = 100_000
COUNTS: Final = (
    "delivered", "merged", "skipped", "gapped", "missing", "repeated", "restarts", "snapshots",
)  # fmt: skip

Reason = Literal["retention", "epoch", "broker", "skipped", "missing"]


class Gap(NamedTuple):
    """Ticks of a stream, from `first_seq` to `last_seq`, that will not arrive.

    An unknown number is None. Both are None if the numbering has restarted.

    Attributes:
        reason: what the server reported: `retention` (no longer retained), `epoch` (the numbering
            has restarted), `broker` (lost on the way to the server) or `skipped` (this program was
            too slow). `missing` means that the server reported nothing, which is a server bug.
    """

    channel: str
    symbol: str
    first_seq: int | None
    last_seq: int | None
    reason: Reason


class Position(NamedTuple):
    """A position in a stream: after this number of this epoch."""

    channel: str
    symbol: str
    epoch: str
    seq: int


class StreamReport(NamedTuple):
    """The accounting of one stream; the counts are those of `StreamAccount`."""

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

        >>> SequenceAccounts().report(reconnects=0).total("delivered")
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


class StreamAccount:
    """The accounting of one stream.

    >>> account = StreamAccount("trades", "ES")
    >>> account.start_run(after=3)
    >>> account.add_gap(6, 8, "broker")[0]  # Nothing explains 4 and 5.
    Gap(channel='trades', symbol='ES', first_seq=4, last_seq=5, reason='missing')
    >>> account.published, account.gapped, account.missing
    (5, 3, 2)
    """

    __slots__ = (
        "_base", "_closed", "channel", "confirmed", "delivered", "epoch", "gapped", "gaps",
        "merged", "missing", "repeated", "restarted", "restarts", "seq", "skipped", "snapshots",
        "symbol", "unresumed",
    )  # fmt: skip

    def __init__(self, channel: str, symbol: str) -> None:
        self.channel = channel
        self.symbol = symbol
        # Identifies the numbering; empty while unknown.
        self.epoch = ""
        # Whether the server has confirmed that `epoch` is that of `seq`. Otherwise it is the epoch
        # that the server last reported for the feed, which may have changed since.
        self.confirmed = False
        # The last number accounted for; None if there is no position to resume from.
        self.seq: int | None = None
        # Numbers of ticks, by outcome.
        self.delivered = self.merged = self.skipped = self.gapped = 0
        # Ticks without one of these outcomes, and ticks that arrived a second time.
        self.missing = self.repeated = 0
        # Numbers of notices and snapshots.
        self.gaps = self.restarts = self.snapshots = 0
        # The numbering has restarted, and no tick of the new one has arrived yet.
        self.restarted = False
        # After a disconnection, the stream continued without a request for the ticks published
        # meanwhile, because the server does not know `resume`.
        self.unresumed = False
        # The number before the current run, and the size of all earlier runs.
        self._base = self._closed = 0

    @property
    def published(self) -> int:
        """How many numbers `seq` has advanced by, over all runs."""
        return self._closed + (0 if self.seq is None else self.seq - self._base)

    def start_run(self, after: int) -> None:
        """Start a run of numbers that follow `after`."""
        self.end_run()
        self._base = self.seq = after

    def end_run(self) -> None:
        """End the current run: there is no position to resume from."""
        self._closed = self.published
        self.seq = None
        self.restarted = self.unresumed = False

    # -- ticks

    def add_tick(self, tick: Tick) -> list[Tick | Gap]:
        """Record a tick; return it for the program, after the gaps before it.

        Leaves out a tick that the program has seen already.
        """
        if tick.seq is None:
            return self._add_unnumbered(tick)
        if tick.snap:
            self.snapshots += 1
            return [tick] if tick.seq >= self._position_before(tick.seq + 1) else []
        first = tick.seq - tick.conflated
        if self.seq == first - 1:  # As it should be; the rest is for ticks that do not fit.
            self.seq = tick.seq
            self.delivered += 1
            self.merged += tick.conflated
            self.restarted = self.unresumed = False
            return [tick]
        items: list[Tick | Gap] = []
        if self.unresumed and tick.seq <= (self.seq or 0):
            # The numbers of live ticks only increase, so this is a new numbering.
            items += self.add_gap(None, None, "epoch")
        position = self._position_before(first)
        if tick.seq <= position:
            self.repeated += 1
            return items
        if first > position + 1:
            items.append(self._add_unexplained(position + 1, first - 1))
            position = first - 1
        self.repeated += position - first + 1
        self.delivered += 1
        self.merged += tick.seq - position - 1
        self._advance(tick.seq)
        return [*items, tick]

    def _add_unnumbered(self, tick: Tick) -> list[Tick | Gap]:
        self.delivered += 1
        if not self.unresumed:
            return [tick]
        self.unresumed = False
        self.gaps += 1
        return [self._gap(None, None, "retention"), tick]

    def _position_before(self, first_seq: int) -> int:
        """Return the position, after starting a run with `first_seq` if no run has begun.

        After a restart, a stream continues with 1 or with the tick after a snapshot, but a slow
        client may not have received that tick. So any number may come first.
        """
        if self.seq is None or self.restarted:
            self.start_run(first_seq - 1)
        return self.seq or 0

    def _advance(self, seq: int) -> None:
        self.seq, self.unresumed = seq, False

    def _add_unexplained(self, first_seq: int, last_seq: int) -> Gap:
        """Count ticks that no notice covers: as a gap if they could not be requested."""
        count = last_seq - first_seq + 1
        if self.unresumed:
            self.gapped += count
            self.gaps += 1
            return self._gap(first_seq, last_seq, "retention")
        self.missing += count
        return self._gap(first_seq, last_seq, "missing")

    def _gap(self, first_seq: int | None, last_seq: int | None, reason: Reason) -> Gap:
        return Gap(self.channel, self.symbol, first_seq, last_seq, reason)

    # -- notices

    def add_gap(self, first_seq: int | None, last_seq: int | None, reason: Reason) -> list[Gap]:
        """Record a `gap` or `skipped` notice; return its gap, after one for missing ticks."""
        if reason != "skipped":
            self.gaps += 1
        if reason == "epoch":
            self.restarts += 1
            self.start_run(0)
            self.epoch, self.confirmed, self.restarted = "", False, True
            return [self._gap(None, None, reason)]
        if first_seq is None or last_seq is None:
            if last_seq is not None:
                self._position_before(last_seq + 1)
            return [self._gap(first_seq, last_seq, reason)]
        position = self._position_before(first_seq)
        gaps: list[Gap] = []
        if first_seq > position + 1:
            gaps.append(self._add_unexplained(position + 1, first_seq - 1))
        # A notice may repeat numbers that were accounted for already.
        first_new = min(max(first_seq, position + 1), last_seq + 1)
        self.repeated += first_new - first_seq
        if reason == "skipped":
            self.skipped += last_seq - first_new + 1
        else:
            self.gapped += last_seq - first_new + 1
        self._advance(max(position, last_seq))
        if first_new <= last_seq:
            gaps.append(self._gap(first_new, last_seq, reason))
        return gaps


class SequenceAccounts:
    """The accounting of all streams of one client."""

    def __init__(self, streams_max: int = STREAMS_MAX) -> None:
        # The feed's epoch that the server last reported.
        self.epoch = ""
        # A numbering has begun since then, so its epoch has to be requested.
        self.epoch_needed = False
        self._streams_max = streams_max
        self._accounts: dict[tuple[str, str], StreamAccount] = {}

    def account(self, channel: str, symbol: str) -> StreamAccount:
        """Return the account of a stream, creating it if necessary."""
        account = self._accounts.get((channel, symbol))
        if account is None:
            if len(self._accounts) >= self._streams_max:
                del self._accounts[next(iter(self._accounts))]  # The stream first seen.
            account = self._accounts[channel, symbol] = StreamAccount(channel, symbol)
        return account

    def add_tick(self, tick: Tick) -> list[Tick | Gap]:
        """Record a tick and return the ticks and gaps for the program."""
        account = self.account(channel_of(tick), tick.symbol)
        if not (account.seq or account.restarted or tick.seq is None):
            self._assume_epoch(account)
        return account.add_tick(tick)

    def add_notice(self, notice: dict[str, Any]) -> list[Gap]:
        """Record a `skipped` or `gap` notice and return the gaps for the program."""
        account = self.account(notice["ch"], notice["S"])
        if account.seq is None:
            self._assume_epoch(account)
        reason: Reason = "skipped" if notice["T"] == "skipped" else notice["reason"]
        if reason == "epoch":
            self.epoch_needed = True
        return account.add_gap(notice["from"], notice["to"], reason)

    def _assume_epoch(self, account: StreamAccount) -> None:
        account.epoch, account.confirmed = self.epoch, False
        self.epoch_needed = True

    # -- epochs and positions

    def epoch_of(self, channel: str, symbol: str) -> str:
        """Return the epoch of a stream; empty while unknown."""
        account = self._accounts.get((channel, symbol))
        return account.epoch if account else ""

    def set_epoch(self, epoch: str) -> None:
        """Set the feed's epoch as the server reported it.

        Numberings that began since it reported a different epoch may belong to either of the two,
        because notice of a restart may still be on its way. They are assigned to this epoch when
        the server reports it again.
        """
        self.epoch = epoch
        for account in self._accounts.values():
            if account.confirmed or account.seq is None:
                continue
            if account.epoch in ("", epoch):
                account.epoch, account.confirmed = epoch, True
            else:
                account.epoch, self.epoch_needed = "", True

    def set_positions(self, positions: Iterable[dict[str, Any]]) -> None:
        """Set the positions from a server's reply: by epoch, then channel, then symbol."""
        for each in positions:
            for channel in CHANNELS:
                for symbol, seq in each.get(channel, {}).items():
                    self.set_position(Position(channel, symbol, each["epoch"], seq))

    def set_position(self, position: Position) -> None:
        """Set the position of one stream."""
        account = self.account(position.channel, position.symbol)
        account.start_run(position.seq)
        account.epoch, account.confirmed = position.epoch, True

    def end_runs_outside(self, subscriptions: Iterable[Subscription]) -> None:
        """Drop the positions of other streams: they start over when they are resubscribed."""
        coverage = Coverage(subscriptions)
        for account in self._accounts.values():
            if account.seq is not None and not _is_covered(account, coverage):
                account.end_run()

    def confirm_epochs(self) -> None:
        """Treat the epochs of all positions as confirmed, before sending them to the server.

        The server will report an epoch that is wrong. Until it does, the epochs must not change,
        because a disconnection may lose that report.
        """
        for account in self._accounts.values():
            account.confirmed = account.seq is not None

    def mark_unresumed(self) -> None:
        """Let all streams go on after a disconnection without the ticks published meanwhile."""
        for account in self._accounts.values():
            account.unresumed = True

    def resumable(
        self, subscriptions: list[Subscription], resumed: Iterable[Subscription] = ()
    ) -> list[StreamAccount]:
        """Return the accounts with a position that these subscriptions cover.

        Args:
            resumed: leave out the streams that these subscriptions cover.
        """
        coverage, excluded = Coverage(subscriptions), Coverage(resumed)
        candidates: Iterable[StreamAccount | None] = self._accounts.values()
        if not coverage.has_wildcards:
            # Named streams can be looked up without a scan of all streams.
            candidates = [
                self._accounts.get((each.channel, each.pattern)) for each in subscriptions
            ]
        return [
            account
            for account in candidates
            if account is not None
            and account.seq is not None
            and _is_covered(account, coverage)
            and not _is_covered(account, excluded)
        ]

    # -- reports

    def report(self, reconnects: int) -> Report:
        """Return a snapshot of the accounts."""
        streams = [
            StreamReport(*(getattr(account, name) for name in StreamReport._fields))
            for _, account in sorted(self._accounts.items())
        ]
        return Report(tuple(streams), reconnects)


def _is_covered(account: StreamAccount, coverage: Coverage) -> bool:
    return coverage.covers(StreamKey("", account.channel, account.symbol))


# -- text for `tickcast watch --audit` and `tickcast record`


def summarize(report: Report) -> list[str]:
    """Summarize a report in three lines of text."""
    verdict = "balanced" if report.balanced else "NOT BALANCED"
    totals = [f"{report.total(name):,} {name}" for name in COUNTS]
    streams, reconnects = len(report.streams), report.reconnects
    return [
        f"{verdict}, {streams:,} stream{'s'[: streams != 1]},"
        f" {reconnects:,} reconnect{'s'[: reconnects != 1]}",
        f"{report.total('published'):,} published: {', '.join(totals[:4])}",
        ", ".join(totals[4:]),
    ]


def describe_gap(gap: Gap) -> str:
    """Describe a gap in one line of text.

    >>> describe_gap(Gap("trades", "ES", 1041, 1100, "retention"))
    'trades ES: 1,041 to 1,100 will not come (retention)'
    """
    name = f"{gap.channel} {gap.symbol}"
    if gap.reason == "epoch":
        return f"{name}: the numbering restarts"
    first = "…" if gap.first_seq is None else f"{gap.first_seq:,}"
    last = "…" if gap.last_seq is None else f"{gap.last_seq:,}"
    return f"{name}: {first} to {last} will not come ({gap.reason})"


def by_severity(stream: StreamReport) -> tuple[int, int, str, str]:
    """Sort key that puts the streams with the most problems first."""
    return (
        -(stream.missing + stream.repeated),
        -(stream.gapped + stream.skipped + stream.restarts),
        stream.symbol,
        stream.channel,
    )
