"""A client and its program, and a server behind a network that can be cut. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from feed.transport.loop_time import run_all
from tests.feed.accounting_client import AccountingClient
from tests.feed.world import Store, Stored, World
from tickcast.client.accounts import Gap
from tickcast.client.messages import Event, Heartbeat
from tickcast.client.state import ClientState, Message, RequestedOptions
from tickcast.wire.actions import Auth, PlayTape, Publish, SteerReplay
from tickcast.wire.encoding import TEXT, Encoding, split_frames
from tickcast.wire.playback import ReplayState
from tickcast.wire.sequence import Batch, SequenceTracker
from tickcast.wire.ticks import Bar, Quote, StreamKey, Tick, Trade, channel_of

CHANNELS = ("trades", "bars:1s")


class MarkedStore(Store):
    """A store whose ticks carry the epoch that they belong to."""

    def publish(self, key: StreamKey, count: int) -> Batch:
        batch = super().publish(key, count)
        for tick in batch.ticks:
            if isinstance(tick, Trade):
                tick.size = self.generation
            elif isinstance(tick, Bar):
                tick.volume = self.generation
        return batch


class OneEpoch(World):
    """Keeps the epochs of streams together: all streams of a feed enter an epoch at once."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MarkedStore()

    def enter_epoch(self) -> str:
        """Return the feed's epoch as far as the server knows; all streams are in it now."""
        epoch = max(run.epoch for run in self.trackers.values())
        for key, run in self.trackers.items():
            if run.epoch < epoch and run.seq:
                if self.store.stream(key).epoch < epoch:
                    self.store.streams[key] = Stored(epoch)
                self.catch_up(key, run)
        return epoch

    def catch_up(self, key: StreamKey, run: SequenceTracker) -> None:
        self.finish_repair(key)
        self.compare_with_store(key)
        while run.behind:
            self.start_repair(key)
            self.finish_repair(key)


def generation_of(tick: Tick) -> float:
    assert not isinstance(tick, Quote)
    return tick.size if isinstance(tick, Trade) else tick.volume


class Seen:
    """What a program sees of one stream: a contiguous run, or explicit gaps."""

    def __init__(self) -> None:
        self.seq: int | None = None
        self.generation = 0.0
        self.restarted = False

    def add(self, item: Tick | Gap) -> None:
        if isinstance(item, Gap):
            assert item.reason != "missing", item
            self._add_gap(item)
            return
        assert item.seq is not None
        if self.restarted or not self.generation:
            self.generation = generation_of(item)
        assert generation_of(item) == self.generation
        if item.snap:
            assert self.seq is None or self.restarted or item.seq == self.seq
            self.seq = item.seq
        else:
            self._cover(item.seq - item.conflated, item.seq)
        self.restarted = False

    def _add_gap(self, gap: Gap) -> None:
        if gap.reason == "epoch":
            self.seq, self.generation, self.restarted = 0, 0, True
        elif gap.first_seq is None:
            assert self.seq is None or self.restarted
            self.seq, self.restarted = gap.last_seq, False
        else:
            assert gap.last_seq is not None
            self._cover(gap.first_seq, gap.last_seq)
            self.restarted = False

    def _cover(self, first: int, last: int) -> None:
        assert self.seq is None or self.restarted or first == self.seq + 1, (self.seq, first, last)
        self.seq = last


class SimulatedClient:
    """Our client on one connection after another, and what its program sees."""

    def __init__(self, world: OneEpoch) -> None:
        self.world = world
        self.state = ClientState(Encoding.JSON)
        self.server = AccountingClient(world)
        self.wire: list[str] = []
        self.restoring: Iterator[Message] | None = None
        self.awaited_id = 0
        self.seen: dict[tuple[str, str], Seen] = {}
        self.subscribed: dict[str, set[str]] = {channel: set() for channel in CHANNELS}

    # -- actions of the program

    def subscribe(
        self, channel: str, patterns: list[str], snapshot: bool, options: RequestedOptions
    ) -> None:
        for symbol in patterns:
            # As a server does before it answers.
            key = StreamKey("live", channel, symbol)
            if symbol[-1] != "*" and key not in self.world.trackers:
                self.world.open(key)
        self.drain()
        self._send(*self.state.subscribe({channel: patterns}, snapshot=snapshot, options=options))
        self.drain()
        self.subscribed[channel].update(patterns)

    def unsubscribe(self, channel: str, patterns: list[str]) -> None:
        self.drain()
        self._send(*self.state.unsubscribe({channel: patterns}))
        self.drain()
        self.subscribed[channel].difference_update(patterns)
        for name in list(self.seen):
            if not self.covers(*name):
                del self.seen[name]

    def covers(self, channel: str, symbol: str) -> bool:
        return any(
            symbol == pattern or (pattern[-1] == "*" and symbol.startswith(pattern[:-1]))
            for pattern in self.subscribed[channel]
        )

    # -- the network

    def _send(self, id_: int, message: str | bytes) -> None:
        request = self.server.session.handle_message(message, 0.0)
        if self.server.session.must_resubscribe:
            run_all(self.server.session.resubscribe())
        assert not isinstance(request, Auth | PlayTape | Publish | SteerReplay)
        if request is not None:
            epoch = self.world.enter_epoch()
            run_all(self.server.session.complete(request, lambda: epoch))
        self.awaited_id = id_

    def transmit(self) -> None:
        """Put what the server has written on its way to the client."""
        data = b"".join(self.server.sink.written)
        self.server.sink.written.clear()
        for opcode, payload in split_frames(data):
            assert opcode == TEXT
            self.wire.append(payload.decode())

    def read_frames(self, count: int) -> None:
        """Let the client read this number of frames."""
        self.transmit()
        for _ in range(min(count, len(self.wire))):
            seen, notices = self.state.receive_frame(self.wire.pop(0))
            for item in seen:
                self._show(item)
            if any(notice.get("id") == self.awaited_id for notice in notices):
                assert all(notice["T"] != "error" for notice in notices), notices
                self.awaited_id = 0
                self.send_next()
            if (
                self.restoring is None
                and not self.awaited_id
                and (request := self.state.request_epoch())
            ):
                self._send(*request)
                self.awaited_id = 0

    def _show(self, item: Tick | Event) -> None:
        assert not isinstance(item, ReplayState | Heartbeat)
        if isinstance(item, Gap):
            name = (item.channel, item.symbol)
        else:
            name = (channel_of(item), item.symbol)
        self.seen.setdefault(name, Seen()).add(item)

    def cut(self, frames_read: int) -> None:
        """Cut the connection after the client has read a part of what was in transit."""
        self.read_frames(frames_read)
        self.wire.clear()
        session = self.server.session
        session.release()
        if session.backfill is not None:
            session.backfill.drop_streams(list(session.backfill.behind))
        self.server = AccountingClient(self.world)
        self.state.begin_connection("tickcast.v1.json")
        self.restoring = iter(self.state.restore())
        self.awaited_id = 0
        self.send_next()

    def send_next(self) -> None:
        """Send the next of the messages that restore all subscriptions."""
        if self.restoring is not None:
            for id_, message in self.restoring:
                self._send(id_, message)
                return
            self.restoring = None

    def drain(self) -> None:
        """Run until nothing is in transit and no stream is behind."""
        self.server.sink.paused = False
        for _ in range(1000):
            self.server.session.drain()
            self.server.advance()
            while self.server.reads:
                self.server.answer_read()
            self.transmit()
            if not self.wire and self.restoring is None and not self.awaited_id:
                backfill = self.server.session.backfill
                if backfill is None or not backfill.behind:
                    return
            self.world.repair_all()
            self.read_frames(len(self.wire))
        raise AssertionError("it never drains")
