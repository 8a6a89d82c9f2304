"""`tickcast bars`, killed and restarted while a client listens."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from tests.cli.conftest import Cli, Shell


def line(second: float, price: float) -> str:
    return json.dumps(
        {"T": "t", "S": "A", "p": price, "s": 2, "t": f"2026-01-05T14:30:{second:06.3f}Z"}
    )


async def said(process: asyncio.subprocess.Process, words: bytes) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(20):
        while words not in await process.stderr.readline():
            pass


async def test_each_bar_is_sent_once_across_a_kill(cli: Cli) -> None:
    async with cli.serving() as (address, _):
        url = address.replace("http", "ws") + "/stream"
        watcher = await cli.start("watch", "A", "--channels", "bars:1s", "--url", url)
        assert watcher.stdout is not None
        bars = []

        async def publish(*lines: str) -> None:
            done = await cli.run("publish", stdin="\n".join(lines))
            assert done.code == 0, done

        maker = await cli.start("bars", "--timeframes", "1s,5s")
        await said(maker, b"making bars of 1s, 5s in live")
        await publish(line(0, 10), line(1, 11), line(5, 13))
        async with asyncio.timeout(30):
            bars += [json.loads(await watcher.stdout.readline()) for _ in range(2)]
        maker.kill()
        await maker.communicate()
        await publish(line(5.5, 12), line(9, 14))
        maker = await cli.start("bars", "--timeframes", "1s,5s")
        async with asyncio.timeout(30):
            bars += [json.loads(await watcher.stdout.readline()) for _ in range(1)]
        second = await cli.run("bars", "--timeframes", "5s")
        assert (second.code, second.out) == (1, "")
        assert second.err == "tickcast: another program makes bars:5s of feed live\n"
        await publish(line(8.5, 15), line(12, 16))
        async with asyncio.timeout(30):
            bars += [json.loads(await watcher.stdout.readline()) for _ in range(2)]
        maker.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(maker.communicate(), 10)
        assert (maker.returncode, out) == (130, b"")
        assert b"Traceback" not in err
    assert [(bar["seq"], bar["t"][17:19], bar["o"], bar["c"], bar["n"]) for bar in bars] == [
        (1, "00", 10, 10, 1),
        (2, "01", 11, 11, 1),
        (3, "05", 13, 12, 2),
        (4, "08", 15, 15, 1),
        (5, "09", 14, 14, 1),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--timeframes", "1s,"], "Invalid value for '--timeframes': '' is none of 1s, 5s,"),
        (["--timeframes", "1s,2s"], "Invalid value for '--timeframes': '2s' is none of 1s, 5s,"),
        (["--lateness", "x"], "Invalid value for '--lateness': 'x' is not a duration such as"),
        (["--lateness", "2h"], "bars_lateness_s: Expected `float` <= 3600.0"),
        (["--symbols", "A B"], "Invalid value for '--symbols': 'A B' is neither a symbol nor"),
    ],
)
def test_misuse_is_one_line(shell: Shell, words: list[str], message: str) -> None:
    done = shell.run("bars", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"tickcast: {message}"), done
    assert done.err.count("\n") == 1


def test_without_a_store_it_fails_in_one_line(shell: Shell) -> None:
    for words, message in (
        ((), "no store is running"),
        (("--redis", "redis://127.0.0.1:1"), "no "),
    ):
        done = shell.run("bars", *words)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"tickcast: {message}"), done
        assert done.err.count("\n") == 1


async def test_the_demo_has_bars(cli: Cli) -> None:
    async with cli.serving("demo") as (address, _):
        url = address.replace("http", "ws") + "/stream"
        watcher = await cli.start("watch", "*", "--channels", "bars:1s", "--url", url)
        assert watcher.stdout is not None
        async with asyncio.timeout(30):
            bar = json.loads(await watcher.stdout.readline())
        assert (bar["T"], bar["tf"]) == ("b", "1s")
        assert bar["n"] > 0
