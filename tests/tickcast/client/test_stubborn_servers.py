"""Reconnecting to servers that refuse, close, fall silent, or know nothing of the past."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.conftest import until
from tests.tickcast.client.double import EPOCH, Peer, hold, playing
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
    await peer.accept(await peer.hear(), positions=[])
    await peer.ticks(1, 2)
    await peer.hear()  # It asks for the epoch.
    peer.cut()


@pytest.mark.parametrize("code", [4101, 4102, 4200, 1012, 1011, 1006])
async def test_it_comes_back_after_a_close(code: int) -> None:
    async def leave(peer: Peer) -> None:
        await peer.accept(await peer.hear(), positions=[])
        await peer.ticks(1, 2)
        if code == 1006:
            peer.cut()
        else:
            await peer.close(code)

    async def resume(peer: Peer) -> None:
        question = await peer.hear()
        assert question["resume"] == [{"epoch": EPOCH, "trades": {"ES": 2}}]
        await peer.accept(question)
        await peer.ticks(3)

    async with playing(leave, resume) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        assert await seqs(stream, 3) == [1, 2, 3]
        assert stream.report().balanced
        assert stream.report().reconnects == 1


@pytest.mark.parametrize("code", [4001, 4004, 4099])
async def test_it_stays_away_when_it_was_told_to(code: int) -> None:
    async def leave(peer: Peer) -> None:
        await peer.accept(await peer.hear(), positions=[])
        await peer.close(code)

    async with playing(leave) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        with pytest.raises(ConnectionFailed, match=f"closed with {code}"):
            await anext(stream)
        assert len(double.peers) == 1


@pytest.mark.parametrize("code", [4001, 1009])
async def test_a_final_close_while_it_comes_back(code: int) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.hear()
        await peer.close(code)

    async with playing(first_then_cut, refuse) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        assert await seqs(stream, 2) == [1, 2]
        with pytest.raises(ConnectionFailed, match=f"closed with {code}"):
            await anext(stream)
        assert len(double.peers) == 2


async def test_a_shutdown_says_when_to_come_back() -> None:
    async def leave(peer: Peer) -> None:
        await peer.accept(await peer.hear(), positions=[])
        await peer.say({"T": "shutdown", "retry_ms": 300})
        await peer.close(1012)

    async with playing(leave, hold) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        await until(lambda: stream.reconnects == 1)
        assert double.dialled_s[1] - double.dialled_s[0] > 0.29


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_refused_handshake_is_tried_again(status: int) -> None:
    async with playing(first_then_cut, hold) as double, connect(double.url) as stream:
        double.refusals = [(status, {}), (status, {"Retry-After": "1"})]
        await stream.subscribe(trades=["ES"])
        await until(lambda: stream.reconnects == 1)
        _, _, second, third = double.dialled_s
        assert third - second >= 1


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refusal_for_good_ends_it(status: int) -> None:
    async with playing(first_then_cut) as double, connect(double.url) as stream:
        double.refusals = [(status, {})]
        await stream.subscribe(trades=["ES"])
        assert await seqs(stream, 2) == [1, 2]
        with pytest.raises(ConnectionFailed, match=str(status)):
            await anext(stream)


async def test_a_broker_that_is_away_is_waited_for() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.refuse(await peer.hear(), 503)

    async with (
        playing(first_then_cut, refuse, refuse, hold) as double,
        connect(double.url) as stream,
    ):
        await stream.subscribe(trades=["ES"])
        await until(lambda: stream.reconnects == 1)
        resumes = [peer.heard[0]["resume"] for peer in double.peers[1:]]
        assert resumes == [[{"epoch": EPOCH, "trades": {"ES": 2}}]] * 3


@pytest.mark.parametrize("code", [405, 409])
async def test_what_is_not_granted_any_more_ends_it(code: int) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.refuse(await peer.hear(), code)

    async with playing(first_then_cut, refuse) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        assert await seqs(stream, 2) == [1, 2]
        with pytest.raises(ConnectionFailed, match=f"refused: {code}"):
            await anext(stream)


@pytest.mark.parametrize("code", [400, 410])
async def test_a_server_that_does_not_know_resume(code: int) -> None:
    """The program receives a gap instead."""

    async def refuse_the_past(peer: Peer) -> None:
        await peer.refuse(await peer.hear(), code)
        question = await peer.hear()
        assert question.keys() == {"action", "trades", "conflate_ms", "id"}
        await peer.accept(question)
        await peer.ticks(7, 8)

    told: list[Gap] = []
    async with (
        playing(first_then_cut, refuse_the_past) as double,
        connect(double.url, on_gap=told.append) as stream,
    ):
        await stream.subscribe(trades=["ES"], conflate_ms=0)
        assert await seqs(stream, 4) == [1, 2, 7, 8]
        assert told == [Gap("trades", "ES", 3, 6, "retention")]
        assert stream.report().balanced


@pytest.mark.parametrize("code", [400, 410])
async def test_a_server_that_does_not_know_positions(code: int) -> None:
    async def plain(peer: Peer) -> None:
        question = await peer.hear()
        assert question["positions"] is True
        await peer.refuse(question, code)
        question = await peer.hear()
        assert question.keys() == {"action", "trades", "id"}
        await peer.accept(question)
        await peer.ticks(5)

    async with playing(plain) as double, connect(double.url) as stream:
        reply = await stream.subscribe(trades=["ES"])
        assert reply["trades"] == ["ES"]
        assert await seqs(stream, 1) == [5]


async def test_what_is_wrong_with_a_subscription_is_said_in_the_servers_words() -> None:
    async def refuse_both(peer: Peer) -> None:
        for _ in range(2):
            await peer.refuse(await peer.hear(), 400)
        await hold(peer)

    async with playing(refuse_both) as double, connect(double.url) as stream:
        with pytest.raises(ConnectionFailed, match="refused: 400 no"):
            await stream.subscribe(trades=["A B"])
        await stream.subscribe(trades=["ES"])
        assert double.peers[0].heard[-1]["positions"] is True


async def test_a_server_of_another_dialect() -> None:
    """The server accepts no subprotocol, echoes no id, and numbers nothing."""

    async def other(peer: Peer) -> None:
        question = await peer.hear()
        assert question.keys() == {"action", "trades", "id"}
        await peer.say({"T": "subscription", "trades": question["trades"]})
        await peer.ticks(None, None)
        if len(double.peers) == 1:
            peer.cut()

    told: list[Gap] = []
    async with (
        playing(other, subprotocols=()) as double,
        connect(double.url, on_gap=told.append) as stream,
    ):
        assert (await stream.subscribe(trades=["ES"]))["trades"] == ["ES"]
        assert await seqs(stream, 2) == [None, None]
        assert not told
        assert await seqs(stream, 2) == [None, None]
        assert told == [Gap("trades", "ES", None, None, "retention")]
        (report,) = stream.report().streams
        assert (report.delivered, report.gaps) == (4, 1)


async def test_a_second_cut_before_everything_was_asked_for_again() -> None:
    """Each set of options takes its own message. Subscriptions not sent again yet are kept."""
    names = ["A", "B", "C"]

    async def begin(peer: Peer) -> None:
        for name in names:
            question = await peer.hear()
            stands = [{"epoch": EPOCH, "trades": {name: 5}}]
            await peer.accept(question, positions=stands)
        peer.cut()

    async def cut_half_way(peer: Peer) -> None:
        await peer.accept(await peer.hear())
        await peer.hear()
        peer.cut()

    async with playing(begin, cut_half_way, hold) as double, connect(double.url) as stream:
        for number, name in enumerate(names):
            await stream.subscribe(trades=[name], conflate_ms=10 * number)
        await until(lambda: stream.reconnects == 1)
        asked = {
            question["trades"][0]: (question["resume"], question["conflate_ms"])
            for question in double.peers[2].heard
        }
        assert asked == {
            name: ([{"epoch": EPOCH, "trades": {name: 5}}], 10 * number)
            for number, name in enumerate(names)
        }


async def test_options_said_in_two_messages_are_both_kept() -> None:
    async def begin(peer: Peer) -> None:
        for _ in range(2):
            await peer.accept(await peer.hear(), positions=[])
        peer.cut()

    async with playing(begin, hold) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"], conflate_ms=250)
        await stream.subscribe(trades=["ES"], slow="skip")
        await until(lambda: stream.reconnects == 1)
        (again,) = double.peers[1].heard
        assert (again["conflate_ms"], again["slow"]) == (250, "skip")


async def test_ticks_that_come_twice_are_left_out_and_counted() -> None:
    async def stutter(peer: Peer) -> None:
        await peer.accept(await peer.hear(), positions=[])
        await peer.ticks(1, 2, 2, 1, 3, 6)

    told: list[Gap] = []
    async with playing(stutter) as double, connect(double.url, on_gap=told.append) as stream:
        await stream.subscribe(trades=["ES"])
        assert await seqs(stream, 4) == [1, 2, 3, 6]
        assert told == [Gap("trades", "ES", 4, 5, "missing")]
        report = stream.report()
        assert (report.total("repeated"), report.total("missing")) == (2, 2)
        assert not report.balanced


async def test_a_gap_is_told_without_a_tick_behind_it() -> None:
    async def gap(peer: Peer) -> None:
        await peer.accept(await peer.hear(), positions=[])
        await peer.say({"T": "gap", "ch": "trades", "S": "ES", "from": 1, "to": 3,
                        "reason": "broker"})  # fmt: skip

    told: list[Gap] = []
    async with playing(gap) as double, connect(double.url, on_gap=told.append) as stream:
        await stream.subscribe(trades=["ES"])
        waiting = asyncio.ensure_future(anext(stream))
        await until(lambda: told)
        assert told == [Gap("trades", "ES", 1, 3, "broker")]
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
async def test_what_is_no_message_ends_it(text: str) -> None:
    async def babble(peer: Peer) -> None:
        await peer.accept(await peer.hear(), positions=[])
        await peer.say_text(text)

    async with playing(babble) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        with pytest.raises(ConnectionFailed, match="invalid message"):
            await anext(stream)


async def test_a_dial_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tickcast.client.connection._OPEN_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConnectionFailed, match="timed out"):
            async with connect(f"ws://127.0.0.1:{port}/stream"):
                pass


async def test_a_slow_program_is_not_taken_for_a_dead_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tickcast.client.connection._SILENCE_S", 0.05)
    monkeypatch.setattr("tickcast.client.connection.QUEUE_TICKS_MAX", 10)

    async def flood(peer: Peer) -> None:
        await peer.accept(await peer.hear(), positions=[])
        await peer.ticks(*range(1, 501))

    async with playing(flood) as double, connect(double.url) as stream:
        await stream.subscribe(trades=["ES"])
        await until(lambda: stream.waiting > 10)
        began = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() > began + 0.3)
        assert await seqs(stream, 500) == list(range(1, 501))
        assert stream.reconnects == 0
