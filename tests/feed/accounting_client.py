"""A client that accounts for every message, by the rules of the protocol."""

from __future__ import annotations

from itertools import islice
from typing import Any

from feed.fanout.counters import Totals
from feed.fanout.outbox import Outbox
from feed.history.cursor import HistoryRead
from feed.server.session import Session
from feed.transport.loop_time import Steps, run_all
from tests.builders import ListSink
from tests.feed.world import World
from tickcast.wire.actions import Auth, PlayTape, Publish, SteerReplay
from tickcast.wire.encoding import Encoding, encode

# The size of two ticks: a client that does not read counts as slow at once.
OUTBOX_BYTES = 150
UNKNOWN = -1


class Account:
    """What a client knows of one stream.

    Attributes:
        seq: the last number accounted for; UNKNOWN before there is one.
        epoch: the numbering it belongs to, as far as the client knows.
    """

    def __init__(self, epoch: str, seq: int = UNKNOWN) -> None:
        self.epoch = epoch
        self.seq = seq
        self.restarted = False

    def add_ticks(self, first: int, last: int) -> None:
        """Account for the ticks from first to last, received or not; they must be the next ones."""
        assert self.seq == UNKNOWN or first == self.seq + 1, (self.seq, first, last)
        assert last >= first - 1
        self.seq, self.restarted = last, False

    def add_snapshot(self, seq: int) -> None:
        assert self.seq == UNKNOWN or self.restarted
        self.seq, self.restarted = seq, False

    def add_gap(self, gap: dict[str, Any], epoch: str) -> None:
        if gap["reason"] == "epoch":
            assert gap["from"] is gap["to"] is None
            self.seq, self.epoch, self.restarted = 0, epoch, True
        elif gap["from"] is None:
            assert self.seq == UNKNOWN
            self.seq = gap["to"]
        else:
            assert gap["from"] <= gap["to"]
            self.add_ticks(gap["from"], gap["to"])


class AccountingClient:
    """A client with its socket, its session, and the history that is being read for it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sink = ListSink()
        self.closed = False
        self.outbox = Outbox(self.sink, OUTBOX_BYTES, self.close)
        self.session = Session(
            world.hub, self.outbox, "live", Encoding.JSON,
            extended=True, subscriptions_max=100, clock=lambda: world.now,
        )  # fmt: skip
        self.accounts: dict[str, Account] = {}
        self.confirmed: dict[str, Any] = {}
        self.totals = Totals()
        self.reads: list[HistoryRead] = []
        self.steps: Steps = iter(())

    def close(self) -> None:
        self.closed = True

    def perform(self, _steps: int | None = None, **action: Any) -> None:
        """Send an action, and carry out `_steps` of its steps, or all of them."""
        self.finish_steps()  # As in the server, the previous message is finished first.
        request = self.session.handle_message(encode(action, Encoding.JSON).decode(), 0.0)
        assert not isinstance(request, Auth | PlayTape | Publish | SteerReplay)
        if self.session.must_resubscribe:
            run_all(self.session.resubscribe())
        if request is not None and not self.closed:
            self.steps = self.session.complete(request, lambda: self.world.store.epoch)
            self.run_steps(_steps)

    def run_steps(self, steps: int | None = None) -> None:
        """Carry out some more steps of the client's action, or all of them."""
        for _ in islice(self.steps, steps):
            if self.closed:
                break

    def finish_steps(self) -> None:
        """Carry out all remaining steps; drop them if the client is gone."""
        if self.closed:
            self.steps = iter(())
        self.run_steps()

    # -- history

    def advance(self) -> None:
        if self.session.backfill is not None and not self.closed:
            self.reads += self.session.backfill.advance(self.world.cache, self.world.now)

    def answer_read(self) -> None:
        """Answer the oldest request for history."""
        if not self.reads:
            return
        read = self.reads.pop(0)
        store, backfill = self.world.store, self.session.backfill
        assert backfill is not None
        if read.time is not None:
            backfill.finish_read(read, store.locate(read.key, read.time))
        else:
            history = store.history(read.key, read.after)
            self.world.cache.put(read.key, history)
            backfill.finish_read(read, history)

    def catch_up(self) -> None:
        """Read history until nothing is left to catch up with."""
        for _ in range(1000):
            if self.session.backfill is None or not self.session.backfill.behind:
                return
            self.advance()
            while self.reads:
                self.answer_read()
            self.process_messages()
        behind = self.session.backfill and self.session.backfill.behind
        raise AssertionError(f"the client never catches up with {behind}")

    # -- messages of the server

    def process_messages(self) -> None:
        """Process all messages that have been written."""
        for message in self.sink.take():
            match message["T"]:
                case "subscription":
                    self._drop_other_accounts(message)
                case "skipped":
                    self.totals.skipped += message["n"]
                    assert message["n"] == message["to"] - message["from"] + 1
                    self._account(message).add_ticks(message["from"], message["to"])
                case "gap":
                    self._account(message).add_gap(message, self.world.store.epoch)
                case "t" | "b":
                    self._add_tick(message)
                case other:
                    assert other in ("configured", "success", "heartbeat"), message

    def _add_tick(self, tick: dict[str, Any]) -> None:
        self.totals.sent += 1
        self.totals.merged += tick.get("cf", 0)
        account = self._account({"ch": "trades" if tick["T"] == "t" else "bars:1s", "S": tick["S"]})
        if tick.get("snap"):
            account.add_snapshot(tick["seq"])
        else:
            account.add_ticks(tick["seq"] - tick.get("cf", 0), tick["seq"])

    def _account(self, message: dict[str, Any]) -> Account:
        channel, symbol = message["ch"], message["S"]
        assert self.holds(channel, symbol)
        return self.accounts.setdefault(f"{channel}/{symbol}", Account(self.world.store.epoch))

    def _drop_other_accounts(self, confirmed: dict[str, Any]) -> None:
        """Forget streams that are no longer held. A new subscription starts them over."""
        self.confirmed = confirmed
        for name in list(self.accounts):
            if not self.holds(*name.split("/")):
                del self.accounts[name]

    def holds(self, channel: str, symbol: str) -> bool:
        """Return whether the last confirmed subscriptions cover the stream."""
        return any(
            symbol == pattern or (pattern[-1] == "*" and symbol.startswith(pattern[:-1]))
            for pattern in self.confirmed.get(channel, [])
        )

    # -- reconnecting

    def reconnect(self) -> AccountingClient:
        """Return the same client on another connection, which resumes with all that it knows."""
        self.process_messages()
        self.steps = iter(())
        self.session.release()
        if self.session.backfill is not None:
            self.session.backfill.drop_streams(self.session.backfill.behind)
        other = AccountingClient(self.world)
        for channel in ("trades", "bars:1s"):
            patterns = self.confirmed.get(channel, [])
            if patterns:
                known = {
                    name.partition("/")[2]: account
                    for name, account in self.accounts.items()
                    if name.startswith(channel + "/") and account.seq != UNKNOWN
                }
                other.accounts.update(
                    (f"{channel}/{symbol}", Account(account.epoch, account.seq))
                    for symbol, account in known.items()
                )
                epochs = {account.epoch for account in known.values()}
                resume = [
                    {"epoch": epoch, channel: {symbol: account.seq
                     for symbol, account in known.items() if account.epoch == epoch}}
                    for epoch in sorted(epochs)
                ]  # fmt: skip
                other.confirmed = {channel: patterns, **other.confirmed}
                other.perform(action="subscribe", **{channel: patterns}, resume=resume)
        return other
