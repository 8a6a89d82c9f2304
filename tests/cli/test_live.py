"""`tickcast live`, run as a user runs it, against a venue on a loopback port."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from producers.commands.live import StatusLine
from producers.recordings.captures import CaptureRecording
from producers.venues.client import VenueClient
from producers.venues.registry import VENUES
from tests.cli.conftest import Cli, Shell
from tests.conftest import RunningServer, until
from tests.producers.venues.recorded import (
    BINANCE,
    BINANCE_SYMBOLS,
    COINBASE,
    binance_tick,
    coinbase_tick,
    needs_captures,
    received_from,
)
from tests.producers.venues.simulator import simulated
from tests.producers.venues.test_client import REFUSED
from tests.producers.venues.test_normalizer import match
from tests.talk import Talk, talking
from tickcast.broker import keys
from tickcast.venues import TickKinds
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.errors import InvalidRecording
from tickcast.wire.ticks import Quote, StreamKey, Tick, Trade
from tickcast.wire.times import Time


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nasdaq", "A-B"], 2, "'nasdaq' is not one of 'binance', 'coinbase', 'kraken'."),
        (["coinbase"], 2, "Missing argument 'SYMBOL…'."),
        (["coinbase", "btc-usd"], 2, "coinbase: 'btc-usd' is not BASE-QUOTE in capitals"),
        (["kraken", "XBT-USD"], 2, "kraken: 'XBT-USD' is called BTC-USD here"),
        (["binance", "BTC-XYZ"], 2, "binance: 'BTC-XYZ': the venue has no markets quoted in that"),
        (
            ["coinbase", "A-B", "--url", "http://x"],
            2,
            "'http://x' is not a ws:// or wss://",
        ),
        (["coinbase", "A-B", "--url", "ws://"], 2, "'ws://' is not a ws:// or wss:// address"),
        (
            ["coinbase", "A-B", "--url", "ws://a:b"],
            2,
            "'ws://a:b' is not a ws:// or wss://",
        ),
        (
            ["coinbase", "A-B", "--url", "ws://a#b"],
            2,
            "'ws://a#b' is not a ws:// or wss://",
        ),
        (["coinbase", "A-B", "--capture", "/dev/null/x"], 2, "/dev/null/x: Not a directory"),
        (["coinbase", "A-B", "--url", "ws://127.0.0.1:1"], 1, "no store is running"),
    ],
)
def test_misuse_is_reported_in_one_line(
    shell: Shell, words: list[str], code: int, message: str
) -> None:
    done = shell.run("live", *words)
    assert done.code == code
    assert message in done.err
    assert done.err.count("\n") == 1


async def test_an_unknown_product_ends_the_command_if_it_is_the_only_one(
    cli: Cli, redis_url: str
) -> None:
    async with simulated([REFUSED % b"FOO-BAR"]) as venue:
        done = await cli.run(
            "live", "coinbase", "FOO-BAR", "--url", venue.url, "--redis", redis_url
        )
    assert done.code == 1
    last = "tickcast: coinbase: Failed to subscribe: FOO-BAR is not a valid product\n"
    assert done.err.endswith(last)


async def test_ctrl_c_leaves_everything_published_and_captured(
    cli: Cli, redis_url: str, server: RunningServer, tmp_path: Path
) -> None:
    frames = [match(number) for number in range(1, 501)]
    async with simulated(frames) as venue, talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["BTC-USD"])
        process = await cli.start(
            "live", "coinbase", "BTC-USD", "--trades", "--url", venue.url, "--redis", redis_url,
            "--capture", str(tmp_path),
        )  # fmt: skip
        assert [tick["i"] for tick in await talk.ticks(500)] == list(range(1, 501))
        assert b"ticker" not in venue.requests[0][0]
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 130
    assert out == b""
    assert b"500 ticks from coinbase, 0 missing, 0 reconnects, 0 bad frames\n" in err
    assert b"Traceback" not in err
    (path,) = tmp_path.iterdir()
    bad: list[Any] = []
    recording = CaptureRecording(path, lambda *row: bad.append(row))
    assert [tick.id for tick in recording if isinstance(tick, Trade)] == list(range(1, 501))
    assert bad == []


async def test_a_capture_outlives_a_kill(cli: Cli, redis_url: str, tmp_path: Path) -> None:
    def captured() -> list[object]:
        with suppress(InvalidRecording):  # A new file is empty for a moment.
            files = list(tmp_path.iterdir())
            return [tick.id for path in files for tick in CaptureRecording(path)
                    if isinstance(tick, Trade)]  # fmt: skip
        return []

    async with simulated(map(match, range(1, 101))) as venue:
        process = await cli.start(
            "live", "coinbase", "BTC-USD", "--url", venue.url, "--redis", redis_url,
            "--capture", str(tmp_path),
        )  # fmt: skip
        await until(lambda: len(captured()) == 100, 20)  # Frames are written while it still runs.
        process.kill()
        await process.communicate()
    assert captured() == list(range(1, 101))


async def test_ticks_received_before_ctrl_c_are_published(
    cli: Cli, redis: Redis, redis_url: str
) -> None:
    meta = keys.meta(StreamKey("live", "trades", "BTC-USD"))
    async with simulated(map(match, range(1, 1_000_000))) as venue:
        process = await cli.start(
            "live", "coinbase", "BTC-USD", "--url", venue.url, "--redis", redis_url
        )
        async with asyncio.timeout(20):
            while not await redis.hget(meta, "seq"):
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 10)
    published = int(await redis.hget(meta, "seq") or 0)
    assert f"\n{published:,} ticks from coinbase, 0 missing" in err.decode()


def test_the_progress_line() -> None:
    async def publish(ticks: list[Tick]) -> None: ...

    client = VenueClient(VENUES["coinbase"], ["BTC-USD"], TickKinds(), publish)
    status = StatusLine()
    first = "not connected, 0 ticks, 0/s, 0 gaps, 0 reconnects, 0 bad frames, skew unknown"
    assert status.format(client, 1.0) == first
    for number in (1, 2, 5):
        client.normalizer.process(match(number), Time.parse("2021-04-17T16:43:30.012Z"))
    client.connected = 1
    line = "3 ticks, 6/s, 1 gaps, 0 reconnects, 0 bad frames, skew +12 ms"
    assert status.format(client, 1.5) == line


async def test_a_terminal_has_a_status_line(cli: Cli, redis_url: str) -> None:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    shown = b""

    def read_on() -> bytes:
        nonlocal shown
        with suppress(BlockingIOError):
            shown += os.read(ours, 65_536)
        return shown

    async with simulated([match(1), match(2)]) as venue:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tickcast", "live", "coinbase", "BTC-USD", "--url", venue.url,
            "--redis", redis_url, stdout=theirs, stderr=theirs, env=cli.environment,
        )  # fmt: skip
        cli.processes.append(process)
        await until(lambda: b"\r\x1b[2K2 ticks, " in read_on(), 20)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), 10)
    read_on()
    os.close(ours)
    os.close(theirs)
    # The status line has been erased and replaced by the result.
    end = "\x1b[2K2 ticks from coinbase, 0 missing, 0 reconnects, 0 bad frames"
    assert end in shown.decode()


def builtins(tick: Tick | dict[str, Any]) -> dict[str, Any]:
    """Convert a tick to what a client receives, without the fields that the server adds."""
    if isinstance(tick, dict):
        fields = dict(tick)
        del fields["seq"]
        fields["t"] = int(Time.from_wire(fields["t"]))
        return fields
    fields = msgspec.json.decode(encode(tick, Encoding.JSON))
    return {**fields, "t": int(tick.time)}


async def listening(talk: Talk, symbols: list[str]) -> None:
    await talk.ask(action="subscribe", trades=symbols, quotes=symbols)


@needs_captures
@pytest.mark.parametrize("encoding", list(Encoding))
async def test_all_recorded_coinbase_ticks_arrive_at_a_client(
    cli: Cli, redis_url: str, server: RunningServer, encoding: Encoding
) -> None:
    received = list(received_from(COINBASE))
    expected = [tick for each in received if (tick := coinbase_tick(each))]
    symbols = sorted({tick.symbol for tick in expected})
    async with (
        simulated([each.frame for each in received], requests_first=len(symbols)) as venue,
        talking(f"{server.stream}?encoding={encoding.value}") as talk,
    ):
        await listening(talk, symbols)
        await cli.start(
            "live", "coinbase", *symbols, "--url", venue.url, "--redis", redis_url
        )  # fmt: skip
        got = await talk.ticks(len(expected))
    check_streams(got, expected)


@needs_captures
@pytest.mark.parametrize("encoding", list(Encoding))
async def test_all_recorded_binance_ticks_arrive_at_a_client(
    cli: Cli, redis_url: str, server: RunningServer, encoding: Encoding
) -> None:
    received = list(received_from(BINANCE))
    expected = [tick for each in received if (tick := binance_tick(each))]
    began = Time.now()
    async with (
        simulated([each.frame for each in received]) as venue,
        talking(f"{server.stream}?encoding={encoding.value}") as talk,
    ):
        await listening(talk, BINANCE_SYMBOLS)
        await cli.start(
            "live", "binance", *BINANCE_SYMBOLS, "--url", venue.url, "--redis", redis_url
        )  # fmt: skip
        got = await talk.ticks(len(expected))
    # The venue sends no time with quotes, so their time is the time of receipt: now.
    for message in got:
        if message["T"] == "q":
            assert began <= Time.from_wire(message["t"]) <= Time.now()
            message["t"] = 0
    for source in expected:
        if isinstance(source, Quote):
            source.time = Time(0)
    check_streams(got, expected)


def check_streams(got: list[dict[str, Any]], expected: list[Tick]) -> None:
    """Check that each stream is complete, in order and exact."""

    def streams(ticks: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for tick in ticks:
            found.setdefault((tick["T"], tick["S"]), []).append(tick)
        return found

    assert streams([builtins(each) for each in got]) == streams(
        [builtins(each) for each in expected]
    )


async def test_lost_trades_are_logged(cli: Cli, redis_url: str, server: RunningServer) -> None:
    async with simulated([match(1), b"\x1b[2J", match(5)]) as venue, talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["BTC-USD"])
        process = await cli.start(
            "live", "coinbase", "BTC-USD", "--url", venue.url, "--redis", redis_url
        )
        await talk.ticks(2)
        process.send_signal(signal.SIGTERM)
        _, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 130
    text = err.decode()
    assert re.search(r"trades are missing venue=coinbase symbol=BTC-USD first=2 last=4\n", text)
    assert r"frame=\x1b[2J" in text
    assert "\x1b" not in text
    assert "2 ticks from coinbase, 3 missing, 0 reconnects, 1 bad frames\n" in text
