"""Reconnecting to servers that refuse, close, fall silent, or know nothing of the past."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.conftest import until
from tests.tickcast.client.scripted_server import EPOCH, Peer, confirm_all, scripted_server
from tickcast import Gap, Stream, connect
from tickcast.wire.errors import ConnectionFailed


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the pattern of delays, but make them so short that tests need not wait."""
    monkeypatch.setattr("tickcast.client.backoff.FIRST_S", 0.002)


async def seqs(stream: Stream, count: int) -> list[int | None]:
    async with asyncio.timeout(10):
        return [(await anext(stream)).seq for _ in range(count)]


async def first_then_cut(peer: Peer) -> None:
    await peer.confirm(await peer.receive(), positions=[])
    await peer.send_ticks(1, 2)
    await peer.receive()  # It asks for the epoch.
    peer.abort()


@pytest.mark.parametrize("code", [4101, 4102, 4200, 1012, 1011, 1006])
async def test_it_reconnects_after_a_close(code: int) -> None:
    async def leave(peer: Peer) -> None:
        await peer.confirm(await peer.receive(), positions=[])
        await peer.send_ticks(1, 2)
        if code == 1006:
            peer.abort()
        else:
            await peer.close(code)

    async def resume(peer: Peer) -> None:
        request = await peer.receive()
        assert request["resume"] == [{"epoch": EPOCH, "trades": {"ES": 2}}]
        await peer.confirm(request)
        await peer.send_ticks(3)

    async with scripted_server(leave, resume) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        assert await seqs(stream, 3) == [1, 2, 3]
        assert stream.report().balanced
        assert stream.report().reconnects == 1


@pytest.mark.parametrize("code", [4001, 4004, 4099])
async def test_no_reconnect_after_a_final_close_code(code: int) -> None:
    async def leave(peer: Peer) -> None:
        await peer.confirm(await peer.receive(), positions=[])
        await peer.close(code)

    async with scripted_server(leave) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        with pytest.raises(ConnectionFailed, match=f"closed with {code}"):
            await anext(stream)
        assert len(double.peers) == 1


@pytest.mark.parametrize("code", [4001, 1009])
async def test_a_final_close_while_reconnecting(code: int) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.receive()
        await peer.close(code)

    async with scripted_server(first_then_cut, refuse) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        assert await seqs(stream, 2) == [1, 2]
        with pytest.raises(ConnectionFailed, match=f"closed with {code}"):
            await anext(stream)
        assert len(double.peers) == 2


async def test_a_shutdown_sets_the_reconnect_delay() -> None:
    async def leave(peer: Peer) -> None:
        await peer.confirm(await peer.receive(), positions=[])
        await peer.send({"T": "shutdown", "retry_ms": 300})
        await peer.close(1012)

    async with scripted_server(leave, confirm_all) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        await until(lambda: stream.reconnects == 1)
        assert double.handshakes_s[1] - double.handshakes_s[0] > 0.29


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_refused_handshake_is_retried(status: int) -> None:
    async with (
        scripted_server(first_then_cut, confirm_all) as double,
        connect(double.url) as stream,
    ):
        double.refusals = [(status, {}), (status, {"Retry-After": "1"})]
        await stream.subscribe(trades=["ES"])
        await until(lambda: stream.reconnects == 1)
        _, _, second, third = double.handshakes_s
        assert third - second >= 1


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_final_refusal_ends_it(status: int) -> None:
    async with scripted_server(first_then_cut) as double, connect(double.url) as stream:
        double.refusals = [(status, {})]
        await stream.subscribe(trades=["ES"])
        assert await seqs(stream, 2) == [1, 2]
        with pytest.raises(ConnectionFailed, match=str(status)):
            await anext(stream)


async def test_it_waits_for_an_unavailable_broker() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.reject(await peer.receive(), 503)

    async with (
        scripted_server(first_then_cut, refuse, refuse, confirm_all) as double,
        connect(double.url) as stream,
    ):
        await stream.subscribe(trades=["ES"])
        await until(lambda: stream.reconnects == 1)
        resumes = [peer.received[0]["resume"] for peer in double.peers[1:]]
        assert resumes == [[{"epoch": EPOCH, "trades": {"ES": 2}}]] * 3


@pytest.mark.parametrize("code", [405, 409])
async def test_a_revoked_subscription_ends_it(code: int) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.reject(await peer.receive(), code)

    async with scripted_server(first_then_cut, refuse) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        assert await seqs(stream, 2) == [1, 2]
        with pytest.raises(ConnectionFailed, match=f"refused: {code}"):
            await anext(stream)


@pytest.mark.parametrize("code", [400, 410])
async def test_a_server_that_does_not_know_resume(code: int) -> None:
    """The program receives a gap instead."""

    async def refuse_the_past(peer: Peer) -> None:
        await peer.reject(await peer.receive(), code)
        request = await peer.receive()
        assert request.keys() == {"action", "trades", "conflate_ms", "id"}
        await peer.confirm(request)
        await peer.send_ticks(7, 8)

    gaps: list[Gap] = []
    async with (
        scripted_server(first_then_cut, refuse_the_past) as double,
        connect(double.url, on_gap=gaps.append) as stream,
    ):
        await stream.subscribe(trades=["ES"], conflate_ms=0)
        assert await seqs(stream, 4) == [1, 2, 7, 8]
        assert gaps == [Gap("trades", "ES", 3, 6, "retention")]
        assert stream.report().balanced


@pytest.mark.parametrize("code", [400, 410])
async def test_a_server_that_does_not_know_positions(code: int) -> None:
    async def plain(peer: Peer) -> None:
        request = await peer.receive()
        assert request["positions"] is True
        await peer.reject(request, code)
        request = await peer.receive()
        assert request.keys() == {"action", "trades", "id"}
        await peer.confirm(request)
        await peer.send_ticks(5)

    async with scripted_server(plain) as double, connect(double.url) as stream:
        reply = await stream.subscribe(trades=["ES"])
        assert reply["trades"] == ["ES"]
        assert await seqs(stream, 1) == [5]


async def test_errors_quote_the_server() -> None:
    async def refuse_both(peer: Peer) -> None:
        for _ in range(2):
            await peer.reject(await peer.receive(), 400)
        await confirm_all(peer)

    async with scripted_server(refuse_both) as double, connect(double.url) as stream:
        with pytest.raises(ConnectionFailed, match="refused: 400 no"):
            await stream.subscribe(trades=["A B"])
        await stream.subscribe(trades=["ES"])
        assert double.peers[0].received[-1]["positions"] is True


async def test_a_server_without_extensions() -> None:
    """The server accepts no subprotocol, echoes no id, and numbers nothing."""

    async def other(peer: Peer) -> None:
        request = await peer.receive()
        assert request.keys() == {"action", "trades", "id"}
        await peer.send({"T": "subscription", "trades": request["trades"]})
        await peer.send_ticks(None, None)
        if len(double.peers) == 1:
            peer.abort()

    gaps: list[Gap] = []
    async with (
        scripted_server(other, subprotocols=()) as double,
        connect(double.url, on_gap=gaps.append) as stream,
    ):
        assert (await stream.subscribe(trades=["ES"]))["trades"] == ["ES"]
        assert await seqs(stream, 2) == [None, None]
        assert not gaps
        assert await seqs(stream, 2) == [None, None]
        assert gaps == [Gap("trades", "ES", None, None, "retention")]
        (report,) = stream.report().streams
        assert (report.delivered, report.gaps) == (4, 1)


async def test_a_second_cut_before_everything_is_restored() -> None:
    """Each set of options takes its own message. Subscriptions not sent again yet are kept."""
    names = ["A", "B", "C"]

    async def begin(peer: Peer) -> None:
        for name in names:
            request = await peer.receive()
            stands = [{"epoch": EPOCH, "trades": {name: 5}}]
            await peer.confirm(request, positions=stands)
        peer.abort()

    async def cut_half_way(peer: Peer) -> None:
        await peer.confirm(await peer.receive())
        await peer.receive()
        peer.abort()

    async with (
        scripted_server(begin, cut_half_way, confirm_all) as double,
        connect(double.url) as stream,
    ):
        for number, name in enumerate(names):
            await stream.subscribe(trades=[name], conflate_ms=10 * number)
        await until(lambda: stream.reconnects == 1)
        sent = {
            request["trades"][0]: (request["resume"], request["conflate_ms"])
            for request in double.peers[2].received
        }
        assert sent == {
            name: ([{"epoch": EPOCH, "trades": {name: 5}}], 10 * number)
            for number, name in enumerate(names)
        }


async def test_options_of_two_messages_are_both_kept() -> None:
    async def begin(peer: Peer) -> None:
        for _ in range(2):
            await peer.confirm(await peer.receive(), positions=[])
        peer.abort()

    async with scripted_server(begin, confirm_all) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"], conflate_ms=250)
        await stream.subscribe(trades=["ES"], slow="skip")
        await until(lambda: stream.reconnects == 1)
        (again,) = double.peers[1].received
        assert (again["conflate_ms"], again["slow"]) == (250, "skip")


async def test_repeated_ticks_are_left_out_and_counted() -> None:
    async def stutter(peer: Peer) -> None:
        await peer.confirm(await peer.receive(), positions=[])
        await peer.send_ticks(1, 2, 2, 1, 3, 6)

    gaps: list[Gap] = []
    async with (
        scripted_server(stutter) as double,
        connect(double.url, on_gap=gaps.append) as stream,
    ):
        await stream.subscribe(trades=["ES"])
        assert await seqs(stream, 4) == [1, 2, 3, 6]
        assert gaps == [Gap("trades", "ES", 4, 5, "missing")]
        report = stream.report()
        assert (report.total("repeated"), report.total("missing")) == (2, 2)
        assert not report.balanced


async def test_a_gap_is_reported_without_a_later_tick() -> None:
    async def gap(peer: Peer) -> None:
        await peer.confirm(await peer.receive(), positions=[])
        await peer.send({"T": "gap", "ch": "trades", "S": "ES", "from": 1, "to": 3,
                        "reason": "broker"})  # fmt: skip

    gaps: list[Gap] = []
    async with (
        scripted_server(gap) as double,
        connect(double.url, on_gap=gaps.append) as stream,
    ):
        await stream.subscribe(trades=["ES"])
        waiting = asyncio.ensure_future(anext(stream))
        await until(lambda: gaps)
        assert gaps == [Gap("trades", "ES", 1, 3, "broker")]
        assert not waiting.done()
        waiting.cancel()


@pytest.mark.parametrize(
    "text",
    [
        '[{"T":"gap"}]',
        '[{"T":"shutdown"}]',
        '[{"no":"T"}]',
        "[1]",
        '{"T":"t"}',
        '[{"T":["t"]}]',
        "",
    ],
)
async def test_an_invalid_message_ends_it(text: str) -> None:
    async def babble(peer: Peer) -> None:
        await peer.confirm(await peer.receive(), positions=[])
        await peer.send_text(text)

    async with scripted_server(babble) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        with pytest.raises(ConnectionFailed, match="invalid message"):
            await anext(stream)


async def test_a_hanging_handshake_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tickcast.client.connection._OPEN_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConnectionFailed, match="timed out"):
            async with connect(f"ws://127.0.0.1:{port}/stream"):
                pass


async def test_a_slow_program_is_not_a_dead_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tickcast.client.connection._SILENCE_S", 0.05)
    monkeypatch.setattr("tickcast.client.connection.QUEUE_TICKS_MAX", 10)

    async def flood(peer: Peer) -> None:
        await peer.confirm(await peer.receive(), positions=[])
        await peer.send_ticks(*range(1, 501))

    async with scripted_server(flood) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        await until(lambda: stream.waiting > 10)
        began = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() > began + 0.3)
        assert await seqs(stream, 500) == list(range(1, 501))
        assert stream.reconnects == 0
