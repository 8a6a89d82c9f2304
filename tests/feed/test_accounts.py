"""delivered + merged + skipped = published, for every stream of every client, whatever happens."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from feed.counters import Totals
from feed.hub import Hub
from feed.outbox import Outbox
from feed.session import Session
from feed.ticks import Bar, Encoding, StreamKey, Trade, encode
from feed.times import Moment, Time
from tests.builders import ListSink, trades

SYMBOLS = ("AA", "AB", "B")
CHANNELS = ("trades", "bars:1s")
BOUND = 150
"""Two ticks: a client that does not read is slow at once."""


class Account:
    """What a client knows of one stream: where it stands, or nothing before the first tick."""

    def __init__(self) -> None:
        self.seq: int | None = None

    def take(self, first: int, last: int) -> None:
        """The ticks from first to last, one way or another, come next."""
        assert self.seq is None or first == self.seq + 1, (self.seq, first, last)
        assert last >= first - 1
        self.seq = last


class Client:
    def __init__(self, hub: Hub, now: list[Moment], extended: bool) -> None:
        self.sink = ListSink()
        self.dead = False
        self.outbox = Outbox(self.sink, BOUND, self.die)
        self.session = Session(
            hub, self.outbox, "live", Encoding.JSON,
            extended=extended, subscriptions_max=100, clock=lambda: now[0],
        )  # fmt: skip
        self.accounts: dict[str, Account] = {}
        self.confirmed: dict[str, Any] = {}
        self.totals = Totals()

    def die(self) -> None:
        self.dead = True

    def say(self, **action: Any) -> None:
        request = self.session.read(encode(action, Encoding.JSON).decode())
        if request is not None and not self.dead:
            self.session.complete(request, "e1")

    def hear(self) -> None:
        """Take everything that has been written."""
        for message in self.sink.take():
            if message["T"] == "subscription":
                self._forget_all_but(message)
            elif message["T"] == "skipped":
                self.totals.skipped += message["n"]
                assert message["n"] == message["to"] - message["from"] + 1
                self._account(message["ch"], message["S"]).take(message["from"], message["to"])
            elif message["T"] in "tb":
                self._take_tick(message)
            else:
                assert message["T"] in ("configured", "success", "heartbeat"), message

    def _take_tick(self, tick: dict[str, Any]) -> None:
        self.totals.sent += 1
        self.totals.merged += tick.get("cf", 0)
        account = self._account("trades" if tick["T"] == "t" else "bars:1s", tick["S"])
        if tick.get("snap"):
            assert account.seq is None
            account.seq = tick["seq"]
        else:
            account.take(tick["seq"] - tick.get("cf", 0), tick["seq"])

    def _account(self, channel: str, symbol: str) -> Account:
        assert self.holds(channel, symbol)
        return self.accounts.setdefault(f"{channel}/{symbol}", Account())

    def _forget_all_but(self, confirmed: dict[str, Any]) -> None:
        """Streams that are held no more begin anew when they are subscribed again."""
        self.confirmed = confirmed
        for name in list(self.accounts):
            if not self.holds(*name.split("/")):
                del self.accounts[name]

    def holds(self, channel: str, symbol: str) -> bool:
        """Whether the last confirmed subscriptions cover the stream."""
        return any(
            symbol == pattern or (pattern[-1] == "*" and symbol.startswith(pattern[:-1]))
            for pattern in self.confirmed.get(channel, [])
        )


PATTERNS = st.lists(st.sampled_from([*SYMBOLS, "*", "A*"]), min_size=1, max_size=3, unique=True)
SLOW = st.sampled_from(["conflate", "skip"])


class Accounts(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.hub = Hub()
        self.now = [Moment(0.0, Time(0))]
        self.published: dict[StreamKey, int] = {}
        self.clients = [Client(self.hub, self.now, extended=True) for _ in range(2)]
        for channel in CHANNELS:
            for symbol in SYMBOLS[:2]:
                self.open(channel, symbol)
        for client in self.clients:
            client.say(action="subscribe", trades=["A*"], **{"bars:1s": ["A*"]})

    def open(self, channel: str, symbol: str) -> None:
        key = StreamKey("live", channel, symbol)
        self.hub.open_stream(key)
        self.published[key] = 0

    @rule()
    @precondition(lambda self: len(self.published) < len(SYMBOLS) * len(CHANNELS))
    def open_another(self) -> None:
        for channel in CHANNELS:
            self.open(channel, SYMBOLS[2])

    @rule(data=st.data(), count=st.integers(1, 4), flush=st.booleans())
    def publish(self, data: st.DataObject, count: int, flush: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.published)))
        ticks: list[Trade] = trades(count, key.symbol, self.published[key] + 1)
        bars = [as_bar(tick) for tick in ticks]
        self.published[key] += count
        self.hub.publish(key, ticks if key.channel == "trades" else bars, published_us=1)
        if flush:
            self.flush(later_ms=5)

    @rule(later_ms=st.sampled_from([0, 5, 60]))
    def flush(self, later_ms: int) -> None:
        steady_s = self.now[0].steady_s + later_ms / 1000
        self.now[0] = Moment(steady_s, Time(int(steady_s * 1e9)))
        self.hub.flush(self.now[0])

    @rule(
        which=st.integers(0, 1), patterns=PATTERNS, channel=st.sampled_from(CHANNELS),
        snapshot=st.booleans(), conflate_ms=st.sampled_from([None, 0, 10, 50]),
        slow=st.one_of(st.none(), SLOW),
    )  # fmt: skip
    def subscribe(
        self, which: int, patterns: list[str], channel: str, snapshot: bool,
        conflate_ms: int | None, slow: str | None,
    ) -> None:  # fmt: skip
        options = {"conflate_ms": conflate_ms, "slow": slow, "snapshot": snapshot or None}
        given = {name: value for name, value in options.items() if value is not None}
        self.clients[which].say(action="subscribe", **{channel: patterns}, **given)

    @rule(which=st.integers(0, 1), patterns=PATTERNS, channel=st.sampled_from(CHANNELS))
    def unsubscribe(self, which: int, patterns: list[str], channel: str) -> None:
        client = self.clients[which]
        client.say(action="unsubscribe", **{channel: patterns})

    @rule(which=st.integers(0, 1), conflate_ms=st.sampled_from([0, 20]), slow=SLOW,
          stamps=st.booleans())  # fmt: skip
    def configure(self, which: int, conflate_ms: int, slow: str, stamps: bool) -> None:
        self.clients[which].say(
            action="configure", conflate_ms=conflate_ms, slow=slow, stamps=stamps
        )

    @rule(which=st.integers(0, 1))
    def stall(self, which: int) -> None:
        self.clients[which].sink.paused = True

    @rule(which=st.integers(0, 1))
    def read_again(self, which: int) -> None:
        client = self.clients[which]
        client.sink.paused = False
        client.session.drain()
        client.hear()

    @invariant()
    def nobody_waits_for_more_than_the_bound(self) -> None:
        for client in getattr(self, "clients", []):
            assert client.dead or client.outbox.waiting_bytes <= BOUND + 64 * 1024

    def teardown(self) -> None:
        if not hasattr(self, "clients"):
            return
        for client in self.clients:
            client.sink.paused = False
            client.session.drain()
        self.flush(1000)
        for client in self.clients:
            client.hear()
            if client.dead:
                continue
            totals = self.hub.totals(client.outbox)
            assert (totals.sent, totals.merged, totals.skipped) == (
                client.totals.sent, client.totals.merged, client.totals.skipped,
            )  # fmt: skip
            for name, account in client.accounts.items():
                assert account.seq == self.published[StreamKey("live", *name.split("/"))]


def as_bar(tick: Trade) -> Bar:
    return Bar(
        symbol=tick.symbol, open=1, high=1, low=1, close=1, volume=1, trade_count=1, vwap=1,
        time=tick.time, timeframe="1s", seq=tick.seq,
    )  # fmt: skip


Accounts.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestAccounts = Accounts.TestCase
