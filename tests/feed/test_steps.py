"""Long actions are carried out in steps; nothing is lost, whatever happens between two steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from feed.access import action_policy
from feed.access.action_policy import MessageLimiter
from feed.access.entitlements import Entitlements, Grant, Proof
from feed.fanout.hub import Hub
from feed.fanout.outbox import Outbox
from feed.history.cache import HistoryCache
from feed.history.client_backfill import STREAMS_PER_TURN
from feed.server.session import Session
from feed.transport import loop_time
from feed.transport.loop_time import Steps, run_all
from tests.builders import NOW, ListSink, trade
from tickcast.wire.actions import Auth, PlayTape, Publish, SteerReplay
from tickcast.wire.encoding import Encoding
from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import Instant, Time

SYMBOLS = [f"S{number}" for number in range(8)]


def key_of(symbol: str) -> StreamKey:
    return StreamKey("live", "trades", symbol)


class Market:
    """A hub in which every stream can be made to tick repeatedly."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.seqs: dict[str, int] = {}
        self.now = NOW
        for symbol in SYMBOLS:
            self.open(symbol, seq=3)

    def open(self, symbol: str, seq: int = 0) -> None:
        self.seqs[symbol] = seq
        latest = trade(symbol, seq=seq) if seq else None
        self.hub.open_stream(key_of(symbol), latest, 1, epoch="e1", seq=seq)

    def tick(self, later_ms: float = 1) -> None:
        for symbol in self.seqs:
            self.seqs[symbol] += 1
            self.hub.publish(key_of(symbol), [trade(symbol, seq=self.seqs[symbol])], 1, "e1")
        steady_s = self.now.monotonic_s + later_ms / 1000
        self.now = Instant(steady_s, Time(self.now.wall + int(later_ms * 1e6)))
        self.hub.flush(self.now)


class Client:
    """A session, and the messages it has received."""

    def __init__(
        self, market: Market, grant: Grant | None = None, limiter: MessageLimiter | None = None
    ) -> None:
        self.market = market
        self.sink = ListSink()
        self.session = Session(
            market.hub, Outbox(self.sink, 1 << 20, lambda: None), "live", Encoding.JSON,
            extended=True, subscriptions_max=100, grant=grant or Grant(), limiter=limiter,
            clock=lambda: market.now,
        )  # fmt: skip

    def begin(self, **action: Any) -> Steps:
        request = self.session.handle_message(json.dumps(action), self.market.now.monotonic_s)
        assert request is not None
        assert not isinstance(request, Auth | PlayTape | Publish | SteerReplay)
        return self.session.complete(request, lambda: "e1")

    def ask(self, **action: Any) -> None:
        run_all(self.begin(**action))

    def seqs(self, messages: list[dict[str, Any]]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for each in messages:
            if each["T"] == "t" and not each.get("snap"):
                found.setdefault(each["S"], []).append(each["seq"])
        return found

    def catch_up(self) -> None:
        backfill = self.session.backfill
        while backfill is not None and backfill.behind:
            assert not backfill.advance(HistoryCache(), self.market.now)


@pytest.fixture(autouse=True)
def one_stream_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_time, "STEP_STREAMS", 1)


@pytest.fixture
def market() -> Market:
    return Market()


def carry_out(steps: Steps, between: Callable[[], None]) -> int:
    """Carry out an action and call `between` after every step; return how many steps there were."""
    gaps = 0
    for _ in steps:
        gaps += 1
        between()
    return gaps


def test_every_tick_after_the_positions_arrives_once(market: Market) -> None:
    client = Client(market)
    steps = client.begin(action="subscribe", trades=["*"], positions=True)
    assert carry_out(steps, market.tick) > len(SYMBOLS)
    reply, *before = client.sink.take()
    assert reply["T"] == "subscription"
    assert before == []
    (positions,) = reply["positions"]
    assert positions == {"epoch": "e1", "trades": market.seqs}
    market.tick()
    assert client.seqs(client.sink.take()) == {name: [seq] for name, seq in market.seqs.items()}


def test_snapshots_are_as_of_the_reply(market: Market) -> None:
    client = Client(market)
    carry_out(client.begin(action="subscribe", trades=["*"], snapshot=True), market.tick)
    reply, *snapshots = client.sink.take()
    assert reply["T"] == "subscription"
    assert {each["S"]: each["seq"] for each in snapshots if each["snap"]} == market.seqs
    assert len(snapshots) == len(SYMBOLS)
    market.tick()
    assert client.seqs(client.sink.take()) == {name: [seq] for name, seq in market.seqs.items()}


def open_in(market: Market, gap: int) -> Callable[[], None]:
    """Return a function that opens a stream after one of the steps, and ticks after each."""
    gaps = iter(range(100))

    def between() -> None:
        if next(gaps) == gap:
            market.open("SNEW")
        market.tick()

    return between


@pytest.mark.parametrize("gap", [0, 4, 9, 15])
def test_a_stream_that_opens_meanwhile_is_in_the_snapshot(market: Market, gap: int) -> None:
    client = Client(market)
    steps = client.begin(action="subscribe", trades=["*"], snapshot=True, positions=True)
    carry_out(steps, open_in(market, gap))
    reply, *snapshots = client.sink.take()
    assert reply["positions"][0]["trades"] == market.seqs
    assert {each["S"]: each["seq"] for each in snapshots if each["snap"]} == market.seqs
    assert market.seqs["SNEW"]


@pytest.mark.parametrize("gap", [0, 4, 9, 15])
def test_history_of_a_stream_that_opens_meanwhile_is_sent(market: Market, gap: int) -> None:
    client = Client(market)
    resume = {"epoch": "e1", "trades": {"*": 0}}
    carry_out(client.begin(action="subscribe", trades=["*"], resume=resume), open_in(market, gap))
    backfill = client.session.backfill
    assert backfill is not None
    assert key_of("SNEW") in backfill.behind
    assert market.seqs["SNEW"]
    market.tick()
    assert client.seqs(client.sink.take()) == {}


def test_changes_in_progress_neither_lose_nor_repeat_ticks(market: Market) -> None:
    client = Client(market)
    client.ask(action="subscribe", trades=["*"], positions=True)
    client.sink.take()
    begun = dict(market.seqs)
    for action in (
        {"action": "configure", "stamps": True},
        {"action": "subscribe", "trades": ["S1", "S2*"]},
        {"action": "unsubscribe", "trades": ["S2*"]},
        {"action": "configure", "stamps": False, "slow": "skip"},
        {"action": "subscribe", "quotes": ["*"], "snapshot": True},
    ):
        assert carry_out(client.begin(**action), market.tick) > 1
    market.tick()
    assert client.seqs(client.sink.take()) == {
        name: list(range(begun[name] + 1, seq + 1)) for name, seq in market.seqs.items()
    }


def test_intervals_can_change_while_ticks_come(market: Market) -> None:
    first, second = Client(market), Client(market)
    first.ask(action="subscribe", trades=["*"], positions=True, conflate_ms=50)
    first.sink.take()
    begun = dict(market.seqs)
    carry_out(
        second.begin(action="subscribe", trades=["*"], positions=True, conflate_ms=50), market.tick
    )
    (reply,) = second.sink.take()[:1]
    came = dict(reply["positions"][0]["trades"])
    carry_out(first.begin(action="configure", stamps=True), market.tick)
    carry_out(first.begin(action="subscribe", trades=["*"], conflate_ms=20), market.tick)
    carry_out(second.begin(action="subscribe", trades=["*"], conflate_ms=0), market.tick)
    for _ in range(60):
        market.tick(later_ms=5)
    market.hub.flush(Instant(market.now.monotonic_s + 1, market.now.wall))
    heard_second = [each for each in second.sink.take() if each["T"] == "t"]
    for client, last, heard in ((first, begun, first.sink.take()), (second, came, heard_second)):
        assert client is not None
        for each in heard:
            if each["T"] == "t":
                assert each["seq"] - each.get("cf", 0) == last[each["S"]] + 1, each
                last[each["S"]] = each["seq"]
        assert last == market.seqs


def test_a_client_can_change_its_subscriptions_during_backfill(market: Market) -> None:
    client = Client(market)
    resume = {"epoch": "e1", "trades": market.seqs.copy()}
    carry_out(client.begin(action="subscribe", trades=["*", "S1"], resume=resume), lambda: None)
    backfill = client.session.backfill
    assert backfill is not None
    assert set(backfill.behind) == {key_of(symbol) for symbol in SYMBOLS}

    def advance() -> None:
        backfill.advance(HistoryCache(), market.now)

    steps = client.begin(action="unsubscribe", trades=["S1"])
    next(steps)
    next(steps)
    assert carry_out(steps, advance) > len(SYMBOLS)
    assert len(backfill.behind) == len(SYMBOLS)
    client.catch_up()
    market.tick()
    assert set(client.seqs(client.sink.take())) == set(SYMBOLS)


def test_resuming_many_streams_is_done_in_steps(market: Market) -> None:
    symbols = [f"M{number:04}" for number in range(3 * STREAMS_PER_TURN)]
    for symbol in symbols:
        market.open(symbol, seq=1)
    client = Client(market)
    client.ask(
        action="subscribe", trades=["M*"],
        resume={"epoch": "e1", "trades": dict.fromkeys(symbols, 1)},
    )  # fmt: skip
    backfill = client.session.backfill
    assert backfill is not None
    for left in (2, 1, 0):
        backfill.advance(HistoryCache(), market.now)
        assert len(backfill.behind) == left * STREAMS_PER_TURN


def test_rights_that_shrink_meanwhile_are_applied(market: Market) -> None:
    everything = Grant(Proof.KEY, "k", Entitlements(symbols=("S*",)))
    client = Client(market, everything)
    shrunk = Grant(Proof.KEY, "k", Entitlements(symbols=("S1", "S2")))
    steps = client.begin(action="subscribe", trades=["*"], snapshot=True, positions=True)
    for _ in range(4):
        next(steps)
    rest = client.session.change_grant(shrunk)
    run_all(steps)
    run_all(rest)
    reply, *snapshots = client.sink.take()
    assert set(reply["positions"][0]["trades"]) == {each["S"] for each in snapshots} == {"S1", "S2"}
    market.tick()
    assert set(client.seqs(client.sink.take())) == {"S1", "S2"}


@pytest.mark.parametrize("gap", range(0, 20, 3))
def test_a_client_that_disconnects_during_a_change_leaves_no_state(
    market: Market, gap: int
) -> None:
    client = Client(market)
    steps = client.begin(action="subscribe", trades=["*"], snapshot=True)
    for _ in range(gap):
        next(steps, None)
    steps.close()  # type: ignore[attr-defined]
    client.session.release()
    assert (len(market.hub.streams.by_key), len(market.hub.groups)) == (len(SYMBOLS), 0)
    assert not any(market.hub.is_wanted(key_of(symbol)) for symbol in SYMBOLS)


def test_work_is_charged_after_it_is_done(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(action_policy, "_CONNECTED_PER_MESSAGE", 1)
    monkeypatch.setattr(action_policy, "_BEGUN_PER_MESSAGE", 1)
    client, other = (Client(market, limiter=MessageLimiter(5, 20)) for _ in range(2))
    configure = '{"action":"configure","stamps":true}'
    client.ask(action="subscribe", trades=["*"], snapshot=True)
    client.ask(action="configure", stamps=True)
    # The action was charged for 8 snapshots, two messages, and twice 8 streams, connected for it
    # alone.
    client.sink.take()
    assert client.session.handle_message(configure, market.now.monotonic_s) is None
    (error,) = client.sink.take()
    assert error["code"] == 429
    market.now = Instant(market.now.monotonic_s + 2, market.now.wall)
    assert client.session.handle_message(configure, market.now.monotonic_s) is not None
    # Streams that other clients already hold cost nothing.
    other.ask(action="configure", stamps=True)
    for _ in range(8):
        other.ask(action="subscribe", trades=["*"])
        other.ask(action="unsubscribe", trades=["*"])


def test_two_clients_of_the_same_streams_share_the_connecting_work(market: Market) -> None:
    first, second = Client(market), Client(market)
    one = first.begin(action="subscribe", trades=["*"])
    two = second.begin(action="subscribe", trades=["*"])
    alone = sum(1 for _ in Client(market).begin(action="subscribe", trades=["S*"]))
    gaps = 0
    while True:
        gaps += 1
        market.tick()
        ended = [next(steps, None) is None and steps_done(steps) for steps in (one, two)]
        if all(ended):
            break
    assert gaps < alone
    first.sink.take()
    second.sink.take()
    market.tick()
    assert first.sink.written[0] is second.sink.written[0]


def steps_done(steps: Steps) -> bool:
    return getattr(steps, "gi_frame", None) is None
