from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Shell


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["dance"], 2, "No such command 'dance'."),
        (["serv"], 2, "No such command 'serv'. Did you mean 'serve'?"),
        (["live", "coinbse", "BTC-USD"], 2, "Invalid value for 'VENUE': 'coinbse' is not one of"),
        (["replayctl", "paus"], 2, "Invalid value for 'ACTION': 'paus' is not one of"),
        (["serve", "--port", "x"], 2, "Invalid value for '--port': 'x' is not a valid integer."),
        (["serve", "--port", "70000"], 2, "port: Expected `int` <= 65535"),
        (["serve", "--metrics-bind", "9100"], 2, "metrics_bind: '9100' is not HOST:PORT"),
        (
            ["serve", "--port", "0", "--redis", "http://x"],
            2,
            "redis_url: 'http://x': no redis://, ",
        ),
        (["publish"], 1, "no store is running in /tmp/"),
        (["publish", "--redis", "redis://127.0.0.1:1"], 1, "no answer from Redis: "),
        (["publish", "/nonexistent"], 2, "Invalid value for '[FILE|-]': File '/nonexistent' does"),
        (["publish", "--feed", "UP"], 2, "Invalid value for '--feed': 'UP' is not 1 to 32"),
        (["synth", "--rate", "0"], 2, "Invalid value for '--rate': '0' is not a number above 0"),
        (["synth", "--rate", "nan"], 2, "Invalid value for '--rate': 'nan' is not a number"),
        (["synth", "--scenario", "x"], 2, "Invalid value for '--scenario': 'x' is not one of"),
        (["replay", "/dev/null"], 1, "/dev/null: empty"),
        (["watch"], 2, "Missing argument 'SYMBOL…'."),
        (["watch", "A B"], 2, "'A B' is not a valid symbol"),
        (["watch", "A", "--channels", "news"], 2, "--channels: 'news' is none of trades,"),
        (["watch", "A", "--url", "http://x"], 2, "'http://x' does not begin with ws://"),
        (["serve", "--port", "0", "--redis", "redis://["], 2, "redis_url: "),
        (["watch", "A", "--url", "ws://["], 1, "ws://[: "),
        (["watch", "A", "--url", "ws://127.0.0.1:1/stream"], 1, "ws://127.0.0.1:1/stream: "),
    ],
)
def test_errors_take_one_line(shell: Shell, words: list[str], code: int, message: str) -> None:
    done = shell.run(*words)
    assert done.code == code, done
    assert done.err.startswith(f"tickcast: {message}"), done
    assert done.err.count("\n") == 1, done
    assert done.out == ""


def test_help_is_shown_without_arguments(shell: Shell) -> None:
    done = shell.run()
    assert done.code == 0
    for command in ("demo", "serve", "publish", "replay", "synth", "watch"):
        assert f"\n  {command} " in done.out
    assert '{"T":"t","S":"AAPL"' in shell.run("publish", "--help").out


async def test_publish_continues_after_bad_lines(cli: Cli) -> None:
    good, negative = '{"T":"t","S":"A","p":1,"s":1}', '{"T":"t","S":"A","p":2,"s":-1}'
    lines = f"{good}\nnonsense\n\n{negative}\n{good}"
    async with cli.serving():
        done = await cli.run("publish", "-", stdin=lines)
        assert done.code == 1
        second, fourth, total = done.err.splitlines()
        assert second.startswith("tickcast: stdin, line 2: not a JSON object: ")
        assert fourth.startswith("tickcast: stdin, line 4: s must be a finite number of at least 0")
        assert total == "tickcast: stdin: 2 bad lines left out, 2 ticks published"
        nothing = await cli.run("publish")
        assert (nothing.code, nothing.err) == (0, "published 0 ticks\n")
        done = await cli.run("publish", "--strict", stdin=lines)
        assert done.code == 1
        assert done.err.count("\n") == 1
        assert "line 2" in done.err


async def test_publish_from_a_pipe_publishes_at_once(cli: Cli) -> None:
    async with cli.serving() as (address, _):
        url = address.replace("http", "ws") + "/stream"
        watcher = await cli.start("watch", "A", "--url", url, "--encoding", "msgpack")
        publisher = await cli.start("publish", stdin=subprocess.PIPE)
        assert publisher.stdin is not None
        assert watcher.stdout is not None
        seen: list[dict[str, object]] = []
        async with asyncio.timeout(30):
            for price in range(3):
                publisher.stdin.write(b'{"T":"t","S":"A","p":%d,"s":1}\n' % price)
                await publisher.stdin.drain()
                while not seen or seen[-1]["p"] != price:
                    line = await watcher.stdout.readline()
                    seen.append(json.loads(line))
        for process in (watcher, publisher):
            process.send_signal(signal.SIGINT)
            _, err = await asyncio.wait_for(process.communicate(), 5)
            assert process.returncode == 130
            assert err == b"\n"  # after the ^C of a terminal


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_tapes_must_be_a_directory(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("TICKCAST_TAPES", "/nonexistent")
    done = shell.run(command, "--port", "0")
    assert (done.code, done.out) == (2, "")
    assert done.err == "tickcast: tapes: /nonexistent is no directory\n"


def test_malformed_redis_url_takes_one_line_in_every_command(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKCAST_REDIS_URL", "redis://user:swordfish@host?unknown=1")
    path = tmp_path / "a.csv"
    path.write_text("time,price,size\n2024-01-02T14:30:00Z,5,1\n")
    for words in (
        *(["demo", "--port", "0"], ["serve", "--port", "0"], ["publish", "/dev/null"]),
        *(["replay", str(path), "--symbol", "A"], ["replayctl", "status"], ["synth"], ["bars"]),
        *(["live", "coinbase", "A-B"], ["load", "ws://127.0.0.1:1/stream", "-s", "A", "-r", "1"]),
    ):
        done = shell.run(*words)
        assert (done.code, done.out) == (2, ""), words
        assert done.err == (
            "tickcast: redis_url: 'redis://host': unknown parameter 'unknown';"
            " the nearest is username\n"
        )


async def test_watch_ends_when_its_reader_exits(cli: Cli) -> None:
    async with cli.serving("demo") as (address, _):
        url = address.replace("http", "ws") + "/stream"
        watcher = await cli.start("watch", "*", "--url", url)
        assert watcher.stdout is not None
        assert json.loads(await watcher.stdout.readline())["T"] in "tq"
        watcher.stdout._transport.close()  # type: ignore[attr-defined]
        async with asyncio.timeout(10):
            await watcher.wait()
        assert watcher.stderr is not None
        assert await watcher.stderr.read() == b""
        assert watcher.returncode == 0


async def test_synth_describes_the_scenario(cli: Cli) -> None:
    async with cli.serving():
        done = await cli.run(*"synth --scenario skewed-clock --rate 1000 --limit 5".split())
    assert done.code == 0
    assert "skewed-clock, every minute: the venue's clock is right for 20 s" in done.err


async def test_replay_prints_a_summary(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("time,price,size\n1378054801,5,1\nx,5,1\n1378054801,6,1\n")
    async with cli.serving():
        done = await cli.run("replay", str(path), "--symbol", "A", "--speed", "max")
        assert done.code == 1
        assert "a.csv, line 3: 'x' is not a time such as" in done.err
        assert done.err.endswith("1 bad line left out, 2 ticks published\n")
        done = await cli.run("replay", str(path), "--symbol", "A", "--speed", "100", "--limit", "1")
        assert done.code == 0
        assert done.err.startswith("replayed 1 tick in ")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--speed", "0"), ("--speed", "fast"), ("--symbol", "A B"), ("--columns", "x")],
)
def test_invalid_replay_options(shell: Shell, tmp_path: Path, option: str, value: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("time,price,size\n1378054801,5,1\n")
    done = shell.run("replay", path, option, value)
    assert done.code == 2, done
    assert done.err.count("\n") == 1
