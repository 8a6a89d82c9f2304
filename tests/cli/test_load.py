from __future__ import annotations

import asyncio
import json
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.conftest import Cli
from tests.clients.load.scripted_server import ScriptedServer, frame, serving, tick
from tickcast.commands import main


class Page(HTMLParser):
    """An HTML parser that fails on mismatched tags and collects the references of a page."""

    VOID = ("meta", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.seen: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.references += (value or "" for name, value in attrs if name in ("href", "src"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


WORKLOAD = """
    -c 20 --symbols 5 --pool 20 --channels trades,quotes,bars:5s -r 1000 --burst 10 -d 2s
    --warmup 100ms --slow 10% --stall 300ms --read 200ms --churn 10/s --processes 2 --snapshot
""".split()


async def test_run_against_a_real_server(cli: Cli, tmp_path: Path) -> None:
    async with cli.serving() as (address, process):
        url = address.replace("http", "ws") + "/v2/"
        done = await asyncio.gather(
            *(
                cli.run(
                    "load", url + encoding, *WORKLOAD, "-e", encoding, "--pid", str(process.pid),
                    "--report", str(tmp_path / f"{encoding}.html"),
                    "--json", str(tmp_path / f"{encoding}.json"),
                )
                for encoding in ("json", "msgpack")
            )
        )  # fmt: skip
    for encoding, each in zip(("json", "msgpack"), done, strict=True):
        assert each.code == 0, each.out
        assert "PASSED: every tick accounted for" in each.out
        assert "Traceback" not in each.err
        assert "measuring" in each.err
        check_report(json.loads((tmp_path / f"{encoding}.json").read_bytes()))
        check_page((tmp_path / f"{encoding}.html").read_text("utf-8"))


def check_report(report: dict[str, Any]) -> None:
    assert report["schema"] == "tickcast-load/1"
    assert report["verdict"]["problems"] == []
    assert report["connections"]["opened"] > 20
    assert report["connections"]["left_by_churn"] > 0
    assert report["connections"]["stalls"] > 0
    accounts = report["accounts"]
    assert accounts["ends_compared"]
    assert accounts["expected_ticks"] == accounts["accounted_ticks"] > 1000
    assert report["publishing"]["published_ticks"] == 2100
    assert report["throughput"]["measured_s"] == pytest.approx(2, abs=0.2)
    assert report["latency"]["from_tick_time"]["p50_ms"] > 0
    assert report["slow_latency"]["from_tick_time"]["max_ms"] > 100
    assert report["server"]["cpu_us_per_tick"] > 0
    assert len(report["timeline"]) == 2


def check_page(text: str) -> None:
    page = Page(text)
    assert page.references == ["data:,"]
    assert page.seen.count("svg") >= 5
    assert "script" not in page.seen
    assert "url(" not in text
    assert "@import" not in text
    assert "PASSED" in text


async def test_existing_flow_is_measured_without_publishing(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "load.json"
    async with cli.serving("demo") as (address, _):
        url = address.replace("http", "ws") + "/stream"
        async with httpx.AsyncClient(base_url=address) as client, asyncio.timeout(20):
            while len((await client.get("/symbols")).json()) < 3:
                await asyncio.sleep(0.01)
        done = await cli.run(
            "load", url, "-c", "5", "-d", "1s", "--warmup", "0", "--symbols", "2",
            "--channels", "trades,quotes", "--json", str(data),
        )  # fmt: skip
    assert done.code == 0, (done.out, done.err)
    assert "PASSED: no tick lost" in done.out
    report = json.loads(data.read_bytes())
    assert report["workload"]["symbols_per_connection"] == 2
    assert report["workload"]["pool_size"] >= 3
    assert not report["accounts"]["ends_compared"]


async def test_signal_ends_the_run_with_a_report(cli: Cli, tmp_path: Path) -> None:
    async with cli.serving() as (address, _):
        url = address.replace("http", "ws") + "/v2/"
        await asyncio.gather(
            *(
                run_interrupted(cli, url + number.name.lower(), tmp_path / number.name, number)
                for number in (signal.SIGINT, signal.SIGTERM)
            )
        )


async def test_ctrl_c_while_connecting_ends_the_run(cli: Cli) -> None:
    async with serving(ScriptedServer(lambda client: [frame(tick(1))])) as url:
        process = await cli.start("load", url, *"-s * -c 500 --ramp 10/s -d 5m -p 2".split())
        assert process.stderr is not None
        async with asyncio.timeout(20):
            while b" 0 connected" in await process.stderr.readline():
                pass
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
    assert process.returncode == 130, err
    assert b"500 requested" in out
    assert b"interrupted" in out


async def test_server_that_stops_fails_the_run(cli: Cli) -> None:
    cli.environment["TICKCAST_OUTAGE_BUFFER_S"] = "0.5"
    async with cli.serving() as (address, server):
        url = address.replace("http", "ws") + "/stream"
        process = await cli.start("load", url, *"-c 5 -r 200 -d 5m".split())
        assert process.stderr is not None
        async with asyncio.timeout(20):
            while b"p50" not in await process.stderr.readline():
                pass
            server.terminate()
            out, err = await process.communicate()
    assert process.returncode == 1, err
    assert b"5 reading connections closed by the server: 5 \xc3\x97 code 1012" in out
    assert b"publishing failed: no answer from Redis" in out
    assert b"Traceback" not in err


async def run_interrupted(cli: Cli, url: str, data: Path, number: signal.Signals) -> None:
    process = await cli.start("load", url, *"-c 5 -r 200 -d 5m --json".split(), str(data))
    assert process.stderr is not None
    async with asyncio.timeout(20):
        while b"p50" not in await process.stderr.readline():
            pass
        process.send_signal(number)
        out, err = await process.communicate()
    assert process.returncode == 130, out
    assert b"Traceback" not in err
    assert b"PASSED: every tick accounted for" in out
    assert b"interrupted" in out
    report = json.loads(data.read_bytes())
    assert report["interrupted"]
    assert report["accounts"]["expected_ticks"] == report["accounts"]["accounted_ticks"] > 0
    assert report["throughput"]["ticks"] > 0


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


async def test_workers_end_when_the_command_is_killed(cli: Cli) -> None:
    async with serving(ScriptedServer(lambda client: [frame(tick(1))])) as url:
        process = await cli.start("load", url, "-s", "*", "-c", "4", "-d", "5m", "-p", "2")
        assert process.stderr is not None
        async with asyncio.timeout(20):
            while b"4 connected" not in await process.stderr.readline():
                pass
            workers = children_of(process.pid)
            assert len(workers) == 2
            process.kill()
            await process.communicate()
            while any(Path(f"/proc/{pid}").exists() for pid in workers):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "Missing argument 'URL'."),
        (["http://x"], 2, "'http://x' does not begin with ws:// or wss://"),
        (["ws://u:p@x/"], 2, "ws://x: the URL must have neither user nor fragment"),
        (["ws://x:99999/"], 2, "'ws://x:99999/': Port out of range"),
        (["ws://127.0.0.1:1/stream"], 1, "ws://127.0.0.1:1/stream: no server listens there"),
        (["ws://127.0.0.1:1/x", "-s", "A"], 1, "ws://127.0.0.1:1/x: no server listens there"),
        (["ws://x", "--token", "X", "--token-file", "/dev/null"], 2, "Invalid value"),
        (["ws://x", "-d", "soon"], 2, "Invalid value for '--duration' / '-d': 'soon' is not a"),
        (["ws://x", "--slow", "120%"], 2, "Invalid value for '--slow': '120%' is not a share"),
        (["ws://x", "--churn", "-1/s"], 2, "Invalid value for '--churn': '-1/s' is not a number"),
        (["ws://x", "-s", "A B"], 2, "--symbols: 'A B' is not a symbol"),
        (["ws://x", "-s", "0", "-r", "1"], 2, "--symbols: must be at least 1"),
        (["ws://x", "-s", "101", "-r", "1"], 2, "--symbols: 101 is more than the pool of 100"),
        (["ws://x", "--channels", "news"], 2, "--channels: 'news' is none of trades, quotes"),
        (["ws://x", "--burst", "5"], 2, "--burst requires --publish-rate"),
        (["ws://x", "--header", "X"], 2, "--header: give it as 'NAME: VALUE'"),
        (["ws://x", "--key", "X"], 2, "give --key with --secret, or --token alone"),
        (["ws://x", "--pid", "4194999"], 2, "--pid 4194999: no such process"),
        (["ws://x", "--heartbeat-ms", "5"], 2, "--heartbeat-ms: must be 0, or 100 to 60000"),
        (["ws://x", "-c", "1000000"], 2, "a process would need 1,000,001 open files"),
        (["ws://x", "--report", "/nowhere/x"], 2, "--report: '/nowhere/x' can't be written"),
        (
            ["ws://x", "-r", "1", "--pool-prefix", "A B"],
            2,
            "--pool-prefix: 'A B99' is not a symbol",
        ),
        (["ws://x", "-r", "1", "--feed", "UP"], 2, "--feed: 'UP' is not 1 to 32 characters"),
    ],
)
def test_misuse_is_reported_in_one_line(
    options: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", ["tickcast", "load", *options])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (code, ""), err
    assert err.startswith(f"tickcast: {message}"), err
    assert err.count("\n") == 1


async def test_missing_server_is_reported_in_one_line(cli: Cli) -> None:
    done = await cli.run("load", "ws://127.0.0.1:1/stream", "-s", "A")
    assert (done.code, done.out) == (1, "")
    assert done.err == "tickcast: ws://127.0.0.1:1/stream: no server listens there\n"
    done = await cli.run("load", "ws://127.0.0.1:1/stream", "-r", "10")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("tickcast: no store is running in /tmp/")
