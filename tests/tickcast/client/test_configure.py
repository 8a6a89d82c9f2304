"""Options that a program requests for its whole connection, and the server's answers."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis.asyncio import Redis

from producers.simulation.replay import Replay, ReplayOptions
from tests.builders import bar, quote, trade, trades
from tests.conftest import RunningServer, until
from tests.recorded import Recorded, at
from tests.tickcast.client.scripted_server import EPOCH, Peer, confirm_all, scripted_server
from tickcast import Configured, Heartbeat, Refused, ReplayState, Stamped, Stream, connect
from tickcast import blocking as without_a_loop
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.replays import ReplayControl
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import ConnectionFailed
from tickcast.wire.playback import Player, ReplayMode
from tickcast.wire.ticks import Bar, Quote, Trade

AT_FIRST = Configured(heartbeat_ms=0, stamps=False, slow=None, conflate_ms=0, replay=False)


def cut(server: RunningServer) -> None:
    for protocol in list(server.server.server_state.connections):
        protocol.transport.abort()


@pytest.mark.parametrize("encoding", list(Encoding))
async def test_settings_are_returned(server: RunningServer, encoding: Encoding) -> None:
    async with connect(server.stream, encoding=encoding) as stream:
        assert await stream.configure() == AT_FIRST
        configured = await stream.configure(stamps=True, slow="skip", conflate_ms=245)
        assert configured == AT_FIRST._replace(stamps=True, slow="skip", conflate_ms=250)
        configured = await stream.configure(slow=None, conflate_ms=0)
        assert configured == AT_FIRST._replace(stamps=True)


async def test_a_refusal_changes_nothing(server: RunningServer) -> None:
    async with connect(server.stream) as stream:
        await stream.configure(heartbeat_ms=60_000)
        with pytest.raises(Refused, match="400 invalid syntax") as caught:
            await stream.configure(heartbeat_ms=1)
        assert caught.value.code == 400
        cut(server)
        await until(lambda: stream.reconnects == 1)
        assert await stream.configure() == AT_FIRST._replace(heartbeat_ms=60_000)


async def test_settings_survive_reconnects(server: RunningServer) -> None:
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"])
        await stream.configure(stamps=True, slow="close")
        await stream.configure(slow="skip", heartbeat_ms=60_000)
        for count in (1, 2):
            cut(server)
            await until(lambda count=count: stream.reconnects == count)  # type: ignore[misc]
            assert await stream.configure() == Configured(60_000, True, "skip", 0, False)


async def test_settings_are_restored_before_subscriptions() -> None:
    async def begin(peer: Peer) -> None:
        await peer.confirm(await peer.receive(), positions=[{"epoch": EPOCH, "trades": {"ES": 5}}])
        request = await peer.receive()
        await peer.send({"T": "configured", **AT_FIRST._asdict(), "id": request["id"]})
        peer.abort()

    async def come_back(peer: Peer) -> None:
        request = await peer.receive()
        await peer.send({"T": "configured", **AT_FIRST._asdict(), "id": request["id"]})
        await confirm_all(peer)

    async with scripted_server(begin, come_back) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        await stream.configure(stamps=True, slow=None)
        await until(lambda: stream.reconnects == 1)
        first, second = double.peers[1].received
        first.pop("id")
        assert first == {"action": "configure", "stamps": True, "slow": None}
        assert second["resume"] == [{"epoch": EPOCH, "trades": {"ES": 5}}]


@pytest.mark.parametrize("code", [409, 410])
async def test_a_server_that_rejects_the_settings_after_a_cut(code: int) -> None:
    """The client does without an unknown action, as with `resume`; a forbidden one is an error."""

    async def begin(peer: Peer) -> None:
        request = await peer.receive()
        await peer.send({"T": "configured", **AT_FIRST._asdict(), "id": request["id"]})
        await peer.confirm(await peer.receive(), positions=[])
        peer.abort()

    async def refuse(peer: Peer) -> None:
        await peer.reject(await peer.receive(), code)
        request = await peer.receive()
        assert request["action"] == "subscribe"
        await peer.confirm(request)

    async with scripted_server(begin, refuse) as double, connect(double.url) as stream:
        await stream.configure(stamps=True)
        await stream.subscribe(trades=["ES"])
        if code == 410:
            await until(lambda: stream.reconnects == 1)
        else:
            with pytest.raises(Refused, match="409"):
                await anext(stream)


async def test_an_incomplete_reply() -> None:
    async def mumble(peer: Peer) -> None:
        request = await peer.receive()
        await peer.send({"T": "configured", "id": request["id"]})

    async with scripted_server(mumble) as double, connect(double.url) as stream:
        with pytest.raises(ConnectionFailed, match="invalid message"):
            await stream.configure(stamps=True)


@pytest.mark.parametrize("encoding", list(Encoding))
async def test_stamped_ticks(
    server: RunningServer, publisher: FeedPublisher, encoding: Encoding
) -> None:
    async with connect(server.stream, encoding=encoding) as stream:
        await stream.configure(stamps=True)
        await stream.subscribe(trades=["ES"], quotes=["ES"], bars=["ES"])
        await publisher.publish([trade(), quote(), bar()])
        ticks = [await anext(stream) for _ in range(3)]
        for tick in ticks:
            assert isinstance(tick, Stamped)
            assert 0 < tick.published_us <= tick.written_us
        for kind in (Trade, Quote, Bar):
            assert any(isinstance(tick, kind) for tick in ticks)
        await stream.configure(stamps=False)
        await publisher.publish([trade()])
        assert await anext(stream) == trade(seq=2)


@pytest.mark.parametrize("encoding", list(Encoding))
async def test_heartbeats_are_in_order_with_ticks(
    server: RunningServer, publisher: FeedPublisher, encoding: Encoding
) -> None:
    heartbeats: list[Heartbeat] = []
    async with connect(server.stream, encoding=encoding, on_heartbeat=heartbeats.append) as stream:
        await stream.subscribe(trades=["ES"])
        await stream.configure(heartbeat_ms=100)
        await publisher.publish(trades(50))
        seen = 0
        async with asyncio.timeout(10):
            while not heartbeats or heartbeats[-1].sent < 50:
                task = asyncio.ensure_future(stream.read())
                await asyncio.wait([task], timeout=0.02)
                if task.done():
                    seen += len(task.result())
                else:
                    task.cancel()
                assert all(beat.sent <= seen for beat in heartbeats)
        assert heartbeats[-1][2:] == (heartbeats[-1].lag_ms, 50, 0, 0)
        assert stream.notices[-1]["T"] == "heartbeat"


@pytest.mark.parametrize("encoding", list(Encoding))
async def test_replay_states_follow_their_ticks(
    server: RunningServer, redis: Redis, settings: Settings, encoding: Encoding
) -> None:
    states: list[ReplayState] = []
    seen: list[int | None] = []

    def take(state: ReplayState) -> None:
        states.append(state)
        if state.mode is ReplayMode.ENDED:
            assert len(seen) == 300

    async with (
        connect(server.stream, encoding=encoding, on_replay=take) as stream,
        FeedPublisher(redis, "live", settings, waits=True) as publisher,
    ):
        assert (await stream.configure(replay=True)).replay
        await stream.subscribe(trades=["ES"])
        deck = Player(Recorded(*range(300)), time.monotonic(), speed=10_000)
        task = asyncio.create_task(
            Replay(deck, publisher, ReplayControl(redis, "live"), ReplayOptions()).run()
        )
        reading = asyncio.create_task(_read_into(stream, seen))
        await until(lambda: states and states[-1].mode is ReplayMode.ENDED)
        assert (states[-1].first, states[-1].last) == (at(0), at(299))
        assert seen == list(range(1, 301))
        await cancel_and_wait([task, reading])


async def _read_into(stream: Stream, seen: list[int | None]) -> None:
    while ticks := await stream.read(1):
        seen += [tick.seq for tick in ticks]


async def test_events_without_a_callback_are_ignored(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    async with connect(server.stream) as stream:
        await stream.configure(heartbeat_ms=100)
        await stream.subscribe(trades=["ES"])
        await until(lambda: stream.waiting)
        await publisher.publish([trade()])
        assert await anext(stream) == trade(seq=1)


async def test_without_an_event_loop(server: RunningServer) -> None:
    heartbeats: list[Heartbeat] = []

    def program() -> Configured:
        with without_a_loop.connect(server.stream, on_heartbeat=heartbeats.append) as stream:
            stream.configure(heartbeat_ms=100, slow="skip")
            while not heartbeats:
                assert stream.read(timeout_s=0.02) == []
            return stream.configure()

    assert await asyncio.to_thread(program) == AT_FIRST._replace(heartbeat_ms=100, slow="skip")
