"""`VenueClient` against a simulated venue, with and without faults."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from producers.venues import client
from producers.venues.binance import Binance
from producers.venues.client import VenueClient
from producers.venues.coinbase import Coinbase
from producers.venues.kraken import Kraken
from tests.conftest import until
from tests.producers.venues.simulator import Step, simulated
from tests.producers.venues.test_normalizer import match
from tests.producers.venues.test_parsing import AT_MS, BINANCE_TRADE, KRAKEN_TICKER, KRAKEN_TRADES
from tickcast.tasks import cancel_and_wait
from tickcast.venues import TickKinds, Venue, VenueLimits
from tickcast.wire.errors import VenueRefused
from tickcast.wire.ticks import Quote, Tick, Trade

HEARTBEAT = b'{"type":"heartbeat","product_id":"BTC-USD","time":"2021-04-17T16:43:30Z"}'
REFUSED = b'{"type":"error","message":"Failed to subscribe","reason":"%b is not a valid product"}'


class Impatient(Coinbase):
    silence_max_s = 0.3


class Run:
    """A client, and the ticks it has published."""

    def __init__(self, venue: Venue, url: str, symbols: tuple[str, ...], **options: Any) -> None:
        self.ticks: list[Tick] = []
        self.client = VenueClient(
            venue, symbols, TickKinds(), self._publish, url=url, jitter=lambda: 0.1, **options
        )

    async def _publish(self, ticks: list[Tick]) -> None:
        self.ticks += ticks

    @property
    def ids(self) -> list[object]:
        return [tick.id for tick in self.ticks if isinstance(tick, Trade)]


@asynccontextmanager
async def running(
    url: str, *symbols: str, venue: Venue | None = None, **options: Any
) -> AsyncIterator[Run]:
    run = Run(venue or Coinbase(), url, symbols or ("BTC-USD",), **options)
    task = asyncio.create_task(run.client.follow_markets())
    try:
        yield run
        assert not task.done(), task.exception()
    finally:
        await cancel_and_wait([task])


@pytest.mark.parametrize("step", [Step.CUT, Step.CLOSE])
async def test_after_a_cut_it_reconnects_and_subscribes_again(step: Step) -> None:
    scripts: list[list[bytes | Step]] = [
        [match(1), match(2), step],
        [match(2, "last_match"), match(3)],
    ]
    async with simulated(*scripts) as venue, running(venue.url) as run:
        await until(lambda: run.ids == [1, 2, 3])
        assert run.client.reconnects == 1
        assert run.client.normalizer.counts.repeats == 1
        assert venue.requests[0] == venue.requests[1]


async def test_delays_grow_while_a_venue_cuts_every_connection(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delays() -> list[float]:
        return [each.__dict__["retry_s"] for each in caplog.records if each.levelname == "WARNING"]

    async with simulated(*[[Step.CUT]] * 4) as venue, running(venue.url):
        await until(lambda: len(delays()) == 4)
    assert delays() == [0.02, 0.04, 0.08, 0.16]
    caplog.clear()
    monkeypatch.setattr(client, "STABLE_AFTER_S", 0.0)
    async with simulated(*[[Step.CUT]] * 3) as venue, running(venue.url):
        await until(lambda: len(delays()) == 3)
    assert delays() == [0.02, 0.02, 0.02]


async def test_a_venue_that_is_away_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    async with simulated() as venue:
        url = venue.url
    async with running(url) as run:
        await until(lambda: run.client.reconnects == 4)
        assert caplog.text.count("connection lost") == 1


@pytest.mark.parametrize("venue", [Impatient(), Binance()], ids=["heartbeats", "pings"])
async def test_a_silent_venue_is_reconnected(venue: Venue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_CLOSE_TIMEOUT_S", 0.05)  # It answers no close, either.
    async with (
        simulated([HEARTBEAT, Step.STALL], [Step.STALL]) as simulator,
        running(simulator.url, "BTC-USDT", venue=venue, ping_after_s=0.2) as run,
    ):
        await until(lambda: run.client.reconnects >= 1)
        await until(lambda: len(simulator.requests) >= 2)


async def test_a_quiet_venue_that_answers_pings_is_kept() -> None:
    async with (
        simulated([]) as simulator,
        running(simulator.url, "BTC-USDT", venue=Binance(), ping_after_s=0.02) as run,
    ):
        await until(lambda: simulator.requests and simulator.requests[0])
        await asyncio.sleep(0.3)
        assert run.client.reconnects == 0


async def test_garbage_is_logged_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    garbage = b'{"type":"match","trade_id":"\xf0\x9f\x98\x80\\u001b[2J"}' + b" " * 1000
    async with simulated([match(1), garbage, b"", match(2)]) as venue, running(venue.url) as run:
        await until(lambda: run.ids == [1, 2])
        assert run.client.reconnects == 0
        assert run.client.normalizer.counts.bad_frames == 2
    # Only one of them: at most one a second is logged.
    (first,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert first.getMessage().startswith("bad frame: ")
    assert len(first.__dict__["frame"]) <= 800


async def test_out_of_order_numbers_are_published_once() -> None:
    frames = [match(number) for number in (10, 12, 11, 12, 15, 14)]
    async with simulated(frames) as venue, running(venue.url) as run:
        await until(lambda: run.ids == [10, 12, 11, 15, 14])
        assert run.client.normalizer.counts.missing == 1


async def test_a_refused_product_is_logged_and_the_others_continue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = [REFUSED % b"FOO-BAR", match(1)]
    async with (
        simulated(script, requests_first=2) as venue,
        running(venue.url, "BTC-USD", "FOO-BAR") as run,
    ):
        await until(lambda: run.ids == [1])
    assert "the venue says: Failed to subscribe: FOO-BAR is not a valid product" in caplog.text


async def test_it_ends_when_all_products_are_refused() -> None:
    async with simulated([REFUSED % b"A-B", REFUSED % b"FOO-BAR"], requests_first=2) as venue:
        run = Run(Coinbase(), venue.url, ("FOO-BAR", "A-B"))
        with pytest.raises(VenueRefused, match=r"coinbase: .*FOO-BAR is not a valid product"):
            await asyncio.wait_for(run.client.follow_markets(), 10)


async def test_messages_of_a_venue_are_escaped() -> None:
    async with simulated([REFUSED % b"A-B \\u001b[2J"]) as venue:
        with pytest.raises(VenueRefused) as caught:
            await asyncio.wait_for(Run(Coinbase(), venue.url, ("A-B",)).client.follow_markets(), 10)
    assert str(caught.value).isprintable()
    assert "\\x1b[2J" in str(caught.value)


async def test_symbols_without_ticks_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        simulated([match(1)], requests_first=2) as venue,
        running(venue.url, "BTC-USD", "A-B", report_silent_after_s=0.5) as run,
    ):
        await until(lambda: "no ticks for some symbols" in caplog.text)
        assert run.ids == [1]
    (record,) = [each for each in caplog.records if "no ticks" in each.getMessage()]
    assert record.__dict__["symbols"] == "A-B"


async def test_kraken_and_binance_are_followed() -> None:
    book = b"""{"stream":"bnbbtc@bookTicker","data":{"u":5,"s":"BNBBTC","b":"1","B":"2","a":"3",
    "A":"4"}}"""
    trade = (BINANCE_TRADE % (AT_MS, AT_MS)).encode()
    kraken = [KRAKEN_TRADES.encode(), (KRAKEN_TICKER % "").encode()]
    symbols = ("MATIC-USD", "BTC-USD", "ALGO-USD")
    async with (
        simulated(kraken, requests_first=2) as venue,
        running(venue.url, *symbols, venue=Kraken()) as run,
    ):
        await until(lambda: [type(each) for each in run.ticks] == [Trade, Trade, Quote])
    async with (
        simulated([trade, book]) as venue,
        running(venue.url, "BNB-BTC", venue=Binance()) as run,
    ):
        await until(lambda: [type(each) for each in run.ticks] == [Trade, Quote])


async def test_a_refusal_of_a_longer_name_does_not_count() -> None:
    async with (
        simulated([REFUSED % b"WBTC-USD", match(1)]) as venue,
        running(venue.url) as run,
    ):
        await until(lambda: run.ids == [1])


async def test_a_temporary_refusal_of_the_handshake_is_retried() -> None:
    async with simulated([match(1)], refusals=2, status=503) as venue, running(venue.url) as run:
        await until(lambda: run.ids == [1])
        assert run.client.reconnects == 2


async def test_a_permanent_refusal_of_the_handshake_ends_it() -> None:
    async with simulated(refusals=99, status=451) as venue:
        with pytest.raises(VenueRefused, match="answers with HTTP status 451"):
            await asyncio.wait_for(Run(Coinbase(), venue.url, ("A-B",)).client.follow_markets(), 10)


@pytest.mark.parametrize(
    ("answer", "is_final"), [(b"", False), (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True)]
)
async def test_a_connection_cut_during_the_handshake_is_retried(
    answer: bytes, is_final: bool
) -> None:
    async def answer_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(answer_and_close, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        run = Run(Coinbase(), f"ws://{host}:{port}", ("A-B",))
        task = asyncio.create_task(run.client.follow_markets())
        await until(lambda: task.done() or run.client.reconnects >= 2)
        assert task.done() == is_final
        await cancel_and_wait([task])
    if is_final:
        assert isinstance(task.exception(), VenueRefused)


async def test_an_error_of_publishing_ends_it() -> None:
    async def fail(ticks: list[Tick]) -> None:
        raise ValueError("no store")

    async with simulated([match(1)]) as venue:
        client = VenueClient(Coinbase(), ["BTC-USD"], TickKinds(), fail, url=venue.url)
        with pytest.raises(ValueError, match="no store"):
            await asyncio.wait_for(client.follow_markets(), 10)


async def test_no_connection_carries_more_than_the_venue_allows() -> None:
    class Small(Coinbase):
        limits = VenueLimits(streams=4, messages_per_s=1000)

    symbols = [f"A{number}-B" for number in range(5)]
    async with simulated() as venue, running(venue.url, *symbols, venue=Small()) as run:
        await until(lambda: run.client.connected == 3)
        await until(lambda: sum(map(len, venue.requests)) == 5)
        assert [len(each) for each in venue.requests] == [2, 2, 1]


async def test_it_subscribes_no_faster_than_the_venue_allows() -> None:
    class Slow(Coinbase):
        limits = VenueLimits(streams=1000, messages_per_s=20)

    loop = asyncio.get_running_loop()
    began = loop.time()
    symbols = [f"A{number}-B" for number in range(7)]
    async with simulated() as venue, running(venue.url, *symbols, venue=Slow()):
        await until(lambda: venue.requests and len(venue.requests[0]) == 7)
    assert loop.time() - began >= 6 / 20
