"""The client and the server together, with every fault that a network between them can cause."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from tests.feed.store_rules import CHANNELS, PATTERNS, StoreRules
from tests.feed.world import time_of
from tests.tickcast.client.simulated_network import OneEpoch, SimulatedClient
from tickcast.client.state import RequestedOptions
from tickcast.wire.ticks import StreamKey


class ClientAndServer(StoreRules):
    """One program with its client, a server, and a store."""

    @initialize(all_=st.booleans())
    def begin(self, all_: bool) -> None:
        self.world = OneEpoch()
        self.open_first()
        self.client = SimulatedClient(self.world)
        self.client.subscribe("trades", ["*" if all_ else "A*"], False, RequestedOptions())

    @rule(data=st.data(), counts=st.lists(st.integers(1, 4), min_size=1, max_size=4),
          arrives=st.sampled_from([True, True, False]), flush=st.booleans())  # fmt: skip
    def publish(self, data: st.DataObject, counts: list[int], arrives: bool, flush: bool) -> None:
        for count in counts:
            self.world.publish(data.draw(st.sampled_from(self.keys)), count, arrives)
            if flush:
                self.world.pass_time(5)

    @rule()
    def repair(self) -> None:
        self.world.repair_all()

    @rule(
        patterns=PATTERNS, channel=st.sampled_from(CHANNELS), seq=st.integers(0, 12),
        past=st.sampled_from([None, None, "snapshot", "start"]),
        conflate_ms=st.sampled_from([None, 0, 10, 50]),
        slow=st.sampled_from([None, "conflate", "skip"]),
    )  # fmt: skip
    def subscribe(
        self, patterns: list[str], channel: str, past: str | None, seq: int,
        conflate_ms: int | None, slow: str | None,
    ) -> None:  # fmt: skip
        start = int(time_of(seq)) if past == "start" else None
        options = RequestedOptions(conflate_ms, slow, start)
        self.client.subscribe(channel, patterns, past == "snapshot", options)

    @rule(patterns=PATTERNS, channel=st.sampled_from(CHANNELS))
    def unsubscribe(self, patterns: list[str], channel: str) -> None:
        self.client.unsubscribe(channel, patterns)

    @rule(reads=st.integers(0, 3))
    def catch_up(self, reads: int) -> None:
        self.client.server.advance()
        for _ in range(reads):
            self.client.server.answer_read()

    @rule(stalls=st.booleans())
    def stall_or_read(self, stalls: bool) -> None:
        self.client.server.sink.paused = stalls
        if not stalls:
            self.client.server.session.drain()

    @rule(count=st.integers(1, 9))
    def read_frames(self, count: int) -> None:
        self.client.read_frames(count)

    @rule(frames_read=st.integers(0, 5))
    def cut(self, frames_read: int) -> None:
        self.client.cut(frames_read)

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        self.world.repair_all()
        self.client.drain()
        self.world.pass_time(1000)
        self.client.drain()
        report = self.client.state.accounts.report(0)
        assert report.balanced, report
        for each in report.streams:
            stored = self.world.store.stream(StreamKey("live", each.channel, each.symbol))
            if each.seq is not None and stored.seq:
                assert each.seq == stored.seq, (each, stored)


ClientAndServer.TestCase.settings = settings(stateful_step_count=30)
TestClientAndServer = ClientAndServer.TestCase
