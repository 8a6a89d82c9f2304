"""Venues of other packages: the example in docs/venues.md, and packages that are broken."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from producers.recordings.captures import CaptureRecording
from producers.venues import registry
from producers.venues.normalizer import parse_frame
from tests.cli.conftest import Shell
from tests.conftest import RunningServer
from tests.producers.venues.simulator import simulated
from tests.talk import talking
from tickcast.venues import Notice, Venue
from tickcast.wire.errors import BadFrame
from tickcast.wire.ticks import Bar
from tickcast.wire.times import Time

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "venues.md").read_text("utf-8")
NOW = Time.parse("2026-01-05T14:30:01Z")
FRAMES = [
    b'{"type":"subscribed"}',
    b'{"type":"trade","market":"BTC/USD"}',
    b'{"type":"trade","market":"BTC/USD","id":7,"price":"97000.5","size":"0.25","side":"sell",'
    b'"time":"2026-01-05T14:30:00Z"}',
    b'{"type":"top","market":"BTC/USD","bid":"97000","bid_size":"1","ask":"97001","ask_size":"2"}',
]


def block(language: str, contains: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = (text for text in blocks if contains in text)
    return str(found)


def install(directory: Path, name: str, entry_points: dict[str, str], module: str) -> None:
    """Install a package the way that pip does, without its build."""
    info = directory / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{venue} = {target}\n" for venue, target in entry_points.items()]
    (info / "entry_points.txt").write_text("[tickcast.venues]\n" + "".join(lines))
    (directory / f"{name.replace('-', '_')}.py").write_text(module)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the path with the example of the page."""
    directory = tmp_path / "packages"
    directory.mkdir()
    project = tomllib.loads(block("toml", "tickcast-acme"))["project"]
    entry_points = project["entry-points"]["tickcast.venues"]
    install(directory, project["name"], entry_points, block("python", "class Acme"))
    monkeypatch.syspath_prepend(str(directory))
    registry.entry_points_by_name.cache_clear()
    registry.find_venue.cache_clear()
    yield directory
    registry.entry_points_by_name.cache_clear()
    registry.find_venue.cache_clear()
    for path in directory.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_the_example_is_short() -> None:
    assert block("python", "class Acme").count("\n") + block("toml", "acme").count("\n") < 80


async def test_live_publishes_the_example(
    packages: Path, server: RunningServer, redis_url: str, tmp_path: Path
) -> None:
    async with simulated(FRAMES) as venue, talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["BTC-USD"], quotes=["BTC-USD"])
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tickcast", "live", "acme", "BTC-USD", "--url", venue.url,
            "--redis", redis_url, "--capture", str(tmp_path / "captures"),
            env={**os.environ, "PYTHONPATH": str(packages)}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        trade, quote = await talk.ticks(2)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 10)
    assert venue.requests[0][0] == (
        b'{"op": "subscribe", "channel": "trades", "markets": ["BTC/USD"]}'
    )
    assert (trade["S"], trade["i"], trade["x"], trade["p"]) == ("BTC-USD", 7, "acme", 97000.5)
    assert (quote["T"], quote["bp"], quote["as"]) == ("q", 97000, 2)
    assert process.returncode == 130
    assert b"bad frame: KeyError: 'time'" in err
    assert b"2 ticks from acme, 0 missing, 0 reconnects, 1 bad frames\n" in err
    (capture,) = (tmp_path / "captures").iterdir()
    assert [tick.symbol for tick in CaptureRecording(capture)] == ["BTC-USD"] * 2


def test_help_and_errors_list_the_venues(packages: Path, shell: Shell) -> None:
    assert "Venues: acme, binance, coinbase, kraken.\n" in shell.run("live", "--help").out
    done = shell.run("live", "nyse", "AAPL")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "'nyse' is not one of 'acme', 'binance', 'coinbase', 'kraken'." in done.err


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import missing_module", "ModuleNotFoundError: No module named 'missing_module'"),
        ("", "AttributeError: module 'broken' has no attribute 'Broken'"),
        ("1 +", "SyntaxError: "),
        ("class Broken: ...", "it is not a subclass of tickcast.venues.Venue"),
        (
            "from tickcast.venues import Venue\nclass Broken(Venue): name = 'broken'",
            "TypeError: Can't instantiate abstract class Broken ",
        ),
        ("Broken = lambda: 1 / 0", "ZeroDivisionError: division by zero"),
        (
            block("python", "class Acme").replace("class Acme", "class Broken"),
            "its class has the name 'acme'; both must be the same",
        ),
        *(
            (
                block("python", "class Acme").replace("class Acme", "class Broken")
                .replace('"acme"', '"broken"').replace(good, bad),
                reason,
            )
            for good, bad, reason in (
                ("    url", "    adress", "its url is None, not a ws:// or wss:// address"),
                ("streams=200", "streams=0", "its limits must be above 0"),
                ("15.0", "0", "its silence_max_s must be above 0, or None"),
                ('PairRule("/")', '"/"', "its symbols must be a SymbolRule"),
            )
        ),
    ],
)  # fmt: skip
def test_a_broken_package_takes_one_line(
    packages: Path, shell: Shell, module: str, reason: str
) -> None:
    install(packages, "broken", {"broken": "broken:Broken"}, module)
    done = shell.run("live", "broken", "BTC-USD")
    assert (done.code, done.err.count("\n")) == (1, 1), done
    assert f"the venue 'broken' of broken 1.0 can't be used: {reason}" in done.err
    for working in ("acme", "coinbase"):
        done = shell.run("live", working, "BTC-USD")
        assert "no store is running" in done.err


def test_names_in_use_are_ignored_with_a_warning(
    packages: Path, shell: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    install(packages, "other", {"acme": "other:Other", "kraken": "other:Other"}, "")
    shell.run("live", "kraken", "BTC-USD")
    assert "ignored the venue 'kraken' of other 1.0: kraken is a built-in venue" in caplog.text
    assert re.search(r"ignored the venue 'acme' of .* 1.0: the venue 'acme' of ", caplog.text)
    assert registry.find_venue("kraken") is registry.VENUES["kraken"]


class Stocks(Venue):
    """A venue whose names are our symbols and whose ticks have no numbers."""

    name = "stocks"
    url = "ws://127.0.0.1"

    def subscribe(self, markets: object, kinds: object) -> list[bytes]:
        return []

    def parse(self, frame: bytes, received: Time) -> Notice:
        content: object = eval(frame, {"self": self, "now": received, "Bar": Bar})
        return content  # type: ignore[return-value]


def test_names_of_markets_can_be_symbols() -> None:
    stocks = Stocks()
    assert stocks.symbols.to_market("BRK.A") == stocks.symbols.to_symbol("BRK.A") == "BRK.A"
    trade = stocks.trade("AAPL", 187.1, 100, None, NOW)
    assert (trade.tick.symbol, trade.series) == ("AAPL", None)
    with pytest.raises(ValueError, match="'A B' is not a symbol"):
        stocks.symbols.to_market("A B")
    with pytest.raises(BadFrame, match="'A B' is not the name of a market"):
        stocks.symbols.to_symbol("A B")


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (b"None", "parse returned NoneType, not a TickFrame or a Notice"),
        (b"{}['price']", "KeyError: 'price'"),
        (b"1 / 0", "ZeroDivisionError: division by zero"),
        (b"float('x')", "could not convert string to float: 'x'"),
        (b"self.trade('AAPL', '187.1', 1, None, now)", "Trade.price: '187.1' is not a number"),
        (b"self.trade('AAPL', 1, 1, None, now, '7')", "the number of a tick is '7'"),
        (b"self.trade('AAPL', 1, -1, None, now)", "s must be a finite number of at least 0"),
    ],
)
def test_errors_of_a_parser_are_bad_frames(frame: bytes, error: str) -> None:
    with pytest.raises(BadFrame, match=re.escape(error)):
        parse_frame(Stocks(), frame, NOW)
