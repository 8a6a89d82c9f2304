"""delivered + merged + skipped + gap = published, for every stream of every client, always."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from feed.transport import loop_time
from tests.feed.accounting_client import OUTBOX_BYTES, AccountingClient
from tests.feed.store_rules import CHANNELS, PATTERNS, StoreRules
from tests.feed.world import World, time_of
from tickcast.wire.ticks import StreamKey

SLOW = st.sampled_from(["conflate", "skip"])
WHICH = st.integers(0, 1)
STEPS = st.one_of(st.none(), st.integers(0, 6))
"""How many steps of an action run before something else happens; None means all."""


@pytest.fixture
def one_stream_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_time, "STEP_STREAMS", 1)


class Accounts(StoreRules):
    """Two clients of a server whose store loses data now and then."""

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.open_first()
        self.clients = [AccountingClient(self.world) for _ in range(2)]
        for client in self.clients:
            client.perform(None, action="subscribe", trades=["A*"], **{"bars:1s": ["A*"]})

    # -- faults of the store and of the network

    @rule(data=st.data(), count=st.integers(1, 4), arrives=st.sampled_from([True, True, False]),
          flush=st.booleans())  # fmt: skip
    def publish(self, data: st.DataObject, count: int, arrives: bool, flush: bool) -> None:
        self.world.publish(data.draw(st.sampled_from(self.keys)), count, arrives)
        if flush:
            self.world.pass_time(5)

    @rule(data=st.data())
    def compare_with_store(self, data: st.DataObject) -> None:
        self.world.compare_with_store(data.draw(st.sampled_from(self.keys)))

    @rule(data=st.data())
    def start_repair(self, data: st.DataObject) -> None:
        self.world.start_repair(data.draw(st.sampled_from(self.keys)))

    @rule(data=st.data())
    def finish_repair(self, data: st.DataObject) -> None:
        self.world.finish_repair(data.draw(st.sampled_from(self.keys)))

    # -- actions of clients

    @rule(
        which=WHICH, patterns=PATTERNS, channel=st.sampled_from(CHANNELS),
        past=st.sampled_from([None, None, "snapshot", "start", "resume"]), seq=st.integers(0, 12),
        conflate_ms=st.sampled_from([None, 0, 10, 50]), slow=st.one_of(st.none(), SLOW),
        steps=STEPS,
    )  # fmt: skip
    def subscribe(
        self, which: int, patterns: list[str], channel: str, past: str | None, seq: int,
        conflate_ms: int | None, slow: str | None, steps: int | None,
    ) -> None:  # fmt: skip
        options = {
            "conflate_ms": conflate_ms,
            "slow": slow,
            "snapshot": True if past == "snapshot" else None,
            "start": int(time_of(seq)) if past == "start" else None,
            "resume": {"epoch": "e0", channel: dict.fromkeys(patterns, 0)}
            if past == "resume"
            else None,
        }
        specified = {name: value for name, value in options.items() if value is not None}
        self.clients[which].perform(steps, action="subscribe", **{channel: patterns}, **specified)

    @rule(which=WHICH, patterns=PATTERNS, channel=st.sampled_from(CHANNELS), steps=STEPS)
    def unsubscribe(self, which: int, patterns: list[str], channel: str, steps: int | None) -> None:
        self.clients[which].perform(steps, action="unsubscribe", **{channel: patterns})

    @rule(
        which=WHICH, conflate_ms=st.sampled_from([0, 20]), slow=SLOW, stamps=st.booleans(),
        steps=STEPS,
    )  # fmt: skip
    def configure(
        self, which: int, conflate_ms: int, slow: str, stamps: bool, steps: int | None
    ) -> None:
        self.clients[which].perform(
            steps, action="configure", conflate_ms=conflate_ms, slow=slow, stamps=stamps
        )

    @rule(which=WHICH, steps=st.integers(1, 3))
    def run_steps(self, which: int, steps: int) -> None:
        self.clients[which].run_steps(steps)

    @rule(which=WHICH)
    def advance(self, which: int) -> None:
        self.clients[which].advance()

    @rule(which=WHICH)
    def answer_read(self, which: int) -> None:
        self.clients[which].answer_read()

    @rule(data=st.data(), which=WHICH, counts=st.lists(st.integers(1, 3), min_size=2, max_size=4))
    def publish_while_it_reads(self, data: st.DataObject, which: int, counts: list[int]) -> None:
        client = self.clients[which]
        for count in counts:
            client.advance()
            key = data.draw(st.sampled_from(self.keys))
            if client.reads:
                key = client.reads[0].key
            self.world.publish(key, count, arrives=True)
            client.answer_read()

    @rule(which=WHICH)
    def stall(self, which: int) -> None:
        self.clients[which].sink.paused = True

    @rule(which=WHICH)
    def read_again(self, which: int) -> None:
        client = self.clients[which]
        client.sink.paused = False
        client.session.drain()
        client.process_messages()

    @rule(which=WHICH)
    def reconnect(self, which: int) -> None:
        self.clients[which] = self.clients[which].reconnect()

    @invariant()
    def no_queue_exceeds_its_bound(self) -> None:
        for client in getattr(self, "clients", []):
            assert client.closed or client.outbox.waiting_bytes <= OUTBOX_BYTES + 64 * 1024

    def teardown(self) -> None:
        if not hasattr(self, "clients"):
            return
        self.world.repair_all()
        for client in self.clients:
            client.sink.paused = False
            client.session.drain()
            client.finish_steps()
            if not client.closed:
                client.catch_up()
        self.world.pass_time(1000)
        for client in self.clients:
            client.process_messages()
            if not client.closed:
                self.check_accounts(client)

    def check_accounts(self, client: AccountingClient) -> None:
        """Check that its totals match what it received, and that its accounts are complete."""
        totals = self.world.hub.totals(client.outbox)
        assert (totals.sent, totals.merged, totals.skipped) == (
            client.totals.sent, client.totals.merged, client.totals.skipped,
        )  # fmt: skip
        for name, account in client.accounts.items():
            key = StreamKey("live", *name.split("/"))
            stored = self.world.store.stream(key)
            if stored.epoch:
                assert account.seq == stored.seq, (name, account.seq, stored)


Accounts.TestCase.settings = settings(stateful_step_count=40)
TestAccounts = pytest.mark.usefixtures("one_stream_per_step")(Accounts.TestCase)
