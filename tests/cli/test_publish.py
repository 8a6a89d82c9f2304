"""What `tickcast publish` reads, and how it follows a file."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, Shell
from tests.conftest import RunningServer
from tests.talk import talking

TICKS: list[dict[str, Any]] = [{"T": "t", "S": "A", "p": price, "s": 1} for price in range(3)]
ALPACA = {
    "trades": {"AAPL": [{"t": "2022-01-20T09:00:00Z", "x": "K", "p": 1, "s": 2, "c": ["@"]}]},
    "next_page_token": None,
}
COLUMNS = "time=When,price=Last,size=Qty,symbol=Ticker"
CSV = "When;Ticker;Last;Qty\n05.01.2026 14:30;A;1,5;1.000\n05.01.2026 14:31;A;?;1\n"
CSV_OPTIONS = ("--columns", COLUMNS, "--decimal", ",", "--time-format", "%d.%m.%Y %H:%M")


async def test_publish_reads_arrays_answers_and_csv(cli: Cli, redis_url: str) -> None:
    # The array is longer than the longest line that is parsed as a whole.
    compact = json.dumps(TICKS * 1000)
    for content, words, code, expected in (
        (json.dumps(TICKS, indent=2), (), 0, ["published 3 ticks"]),
        (compact, (), 0, ["published 3,000 ticks"]),
        (compact[:-30], (), 1, [
            "tickcast: stdin, line 1: not a JSON object: Input data was truncated",
            "tickcast: stdin: 1 bad line left out, 2,999 ticks published",
        ]),
        (json.dumps(ALPACA), (), 0, [
            "tickcast: stdin: left out c, which ticks do not have",
            "published 1 tick",
        ]),
        (CSV, CSV_OPTIONS, 1, [
            "tickcast: stdin, line 3: price '?' is not a number",
            "tickcast: stdin: 1 bad line left out, 1 tick published",
        ]),
        (CSV, (), 1, [
            "tickcast: stdin: no time column among When, Ticker, Last, Qty;"
            " name it with --columns time=NAME",
        ]),
    ):  # fmt: skip
        done = await cli.run("publish", "--redis", redis_url, *words, stdin=content)
        assert (done.code, done.err.splitlines()) == (code, expected)


async def test_strict_keeps_the_rows_before_the_bad_one(
    cli: Cli, server: RunningServer, redis_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(CSV)
    async with talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["A"])
        done = await cli.run("publish", str(path), "--strict", "--redis", redis_url, *CSV_OPTIONS)
        (tick,) = await talk.ticks(1)
    assert (tick["p"], tick["s"], tick["t"]) == (1.5, 1000, "2026-01-05T14:30:00Z")
    assert done.code == 1
    assert done.err.startswith(f"tickcast: {path}, line 3: price '?' is not a number; ")


async def test_follow_publishes_what_is_appended_through_rotations(
    cli: Cli, server: RunningServer, redis_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "ticks.jsonl"

    def append(text: str) -> None:
        with path.open("a") as file:
            file.write(text)

    async with talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["A"])

        async def price() -> float:
            (tick,) = await talk.ticks(1)
            return float(tick["p"])

        process = await cli.start("publish", str(path), "--follow", "--redis", redis_url)
        assert process.stderr is not None
        waiting = await asyncio.wait_for(process.stderr.readline(), 20)
        assert waiting == f"tickcast: waiting for {path}\n".encode()
        line = '{"T":"t","S":"A","p":%d,"s":1}\n'
        append(line % 1)
        assert await price() == 1
        append((line % 2)[:9])
        append((line % 2)[9:] + "nonsense\n" + line % 3)
        assert [await price(), await price()] == [2, 3]
        path.rename(tmp_path / "ticks.1")
        append(line % 4 + "\n" * 99)
        assert await price() == 4
        path.write_text("")
        append("[\n" + line % 5 + ",")
        assert await price() == 5
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 130
    bad, published, end = err.decode().split("\n", 2)
    assert bad.startswith(f"tickcast: {path}, line 3: not a JSON object: ")
    assert (published, end) == (f"tickcast: {path}: published 5 ticks", "\n")


async def test_a_pipe_of_csv_publishes_each_row_at_once(
    cli: Cli, server: RunningServer, redis_url: str
) -> None:
    async with talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["A"])
        process = await cli.start("publish", "--redis", redis_url, stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(b"time,symbol,price,size\n")
        for price in (1, 2):
            process.stdin.write(b"2026-01-05T14:30:00Z,A,%d,1\n" % price)
            assert (await talk.ticks(1))[0]["p"] == price
        process.stdin.close()
        assert await process.wait() == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--follow"], 2, "--follow needs a FILE; a pipe is read to its end anyway"),
        (["--follow", "/tmp"], 2, "Invalid value for '[FILE|-]': File '/tmp' is a directory."),
        (["/nonexistent"], 2, "Invalid value for '[FILE|-]': File '/nonexistent' does not exist."),
        (["--columns", "when=x"], 2, "Invalid value for --columns: 'when=x' is not WHAT=NAME"),
    ],
)
def test_misuse_takes_one_line(shell: Shell, words: list[str], code: int, message: str) -> None:
    done = shell.run("publish", *words)
    assert (done.code, done.err.count("\n")) == (code, 1)
    assert done.err.startswith(f"tickcast: {message}")
