"""Each command with standard streams that are closed, full or gone, and signals that end it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.cli.conftest import Cli, Finished, Shell
from tests.cli.forking import DEVNULL, PIPE, forks
from tests.conftest import until
from tests.talk import talking
from tickcast.commands.group import COMMANDS, tickcast

FULL_DEVICE = Path("/dev/full")
FULL = "tickcast: can't write the output: No space left on device\n"


async def run(
    cli: Cli,
    words: Sequence[str],
    *,
    closed: Sequence[int] = (),
    full: Sequence[int] = (),
    unread: Sequence[int] = (),
    encoding: str = "utf-8",
) -> Finished:
    """Run the command with streams that are closed, full, or pipes without a reader."""
    with ExitStack() as stack:
        streams: list[Any] = [DEVNULL, PIPE, PIPE]
        for number in range(3):
            if number in closed:
                streams[number] = None
            elif number in full:
                streams[number] = os.open("/dev/full", os.O_WRONLY)
                stack.callback(os.close, streams[number])
            elif number in unread:
                reading, streams[number] = os.pipe()
                os.close(reading)
                stack.callback(os.close, streams[number])
        process = await forks().start(words, cli.environment, *streams, encoding=encoding)
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Finished(process.returncode, (out or b"").decode("latin-1"), (err or b"").decode())


def table(stream: str, path: Path) -> dict[str, tuple[list[str], int]]:
    """Each command with arguments that finish quickly, and the exit code."""
    csv = path / "a.csv"
    csv.write_text("time,price,size\n2024-01-02T14:30:00Z,5,1\n")
    record = ["record", stream, "--trades", "*", "--limit", "1"]
    return {
        "demo": (["demo", "--symbols", "0"], 2),
        "serve": (["serve", "--tapes", "/nonexistent"], 2),
        "publish": (["publish"], 0),
        "replay": (["replay", str(csv), "--symbol", "A", "--hash", "--feed", "past"], 0),
        "replayctl": (["replayctl", "status"], 1),
        "live": (["live", "coinbase", "nonsense"], 2),
        "synth": (["synth", "--limit", "5", "--rate", "1000", "--feed", "made-up"], 0),
        "bars": (["bars", "--timeframes", "2s"], 2),
        "watch": (["watch", "*", "--url", stream, "--limit", "1"], 0),
        "record": ([*record, "--out", str(path / "tapes")], 0),
        "tape": (["tape", "info", str(csv)], 1),
        "load": (["load", stream, "-s", "NONE", "-c", "1", "-d", "100ms", "--warmup", "0"], 0),
        "keys": (["keys", "list", "--file", "/nonexistent"], 2),
        "config": (["config", "--all"], 0),
        "doctor": (["doctor"], 0),
        "completion": (["completion", "bash"], 0),
    }


async def test_commands_work_with_closed_streams(cli: Cli, tmp_path: Path) -> None:
    async with cli.serving("demo", "--symbols", "2", "--rate", "50") as (address, _):
        commands = table(address.replace("http", "ws") + "/stream", tmp_path)
        assert sorted(commands) == sorted(COMMANDS)
        for words, code in commands.values():
            usual = await run(cli, words)
            assert usual.code == code, usual
            for closed in ((0,), (0, 1, 2)):
                done = await run(cli, words, closed=closed)
                assert done.code == code, (words, closed, done)
                if closed == (0,):
                    assert "Traceback" not in done.err
                else:
                    assert done[1:] == ("", "")
            if usual.out and not code:
                done = await run(cli, words, full=[1])
                assert (done.code, done.err.splitlines(True)[-1]) == (1, FULL), words


async def test_full_disks_closed_pipes_and_other_encodings(cli: Cli) -> None:
    """Uses the help and usage errors, which each command can print without a server."""
    for name in COMMANDS:
        words = [name, "--help"]
        done = await run(cli, words, full=[1])
        assert (done.code, done.err) == (1, FULL), name
        assert (await run(cli, words, full=[2])).code == 0
        done = await run(cli, words, unread=[1])
        assert (done.code, done.err) == (0, "")
        assert (await run(cli, [name, "--no-such"], unread=[1, 2])).code == 2
        assert (await run(cli, [name, "--no-such"], full=[1, 2])).code == 2
        latin = await run(cli, words, encoding="latin-1")
        assert (latin.code, latin.err) == (0, "")
        assert (await run(cli, words, encoding="ascii")).code == 0


async def test_server_with_unwritable_output_fails(cli: Cli, runtime_dir: Path) -> None:
    with FULL_DEVICE.open("wb") as full:  # noqa: ASYNC230 - nothing to wait for
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tickcast", "serve", "--port", "0",
            stdout=full, stderr=subprocess.PIPE, env=cli.environment,
        )  # fmt: skip
        _, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert err.decode().splitlines()[-1] == FULL.strip()
    assert b"Traceback" not in err
    await until(lambda: not runtime_dir.exists())


async def test_too_few_descriptors_are_reported_in_one_line(cli: Cli) -> None:
    process = await asyncio.create_subprocess_shell(
        f"ulimit -n 12; exec {sys.executable} -m tickcast watch A",
        stderr=subprocess.PIPE, env=cli.environment,
    )  # fmt: skip
    _, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, err) == (1, b"tickcast: Too many open files\n")


async def test_server_continues_without_streams(cli: Cli) -> None:
    """Its log and its output are discarded, and no socket gets the number of a standard stream."""
    async with cli.serving("serve") as (address, process):
        assert process.stdout is not None
        process.stdout._transport.close()  # type: ignore[attr-defined]
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{address}/health")).status_code == 200
        process.send_signal(signal.SIGHUP)
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_sighup_closes_clients_with_1012(cli: Cli, runtime_dir: Path) -> None:
    async with cli.serving() as (address, process):
        async with talking(address.replace("http", "ws") + "/stream") as talk:
            process.send_signal(signal.SIGHUP)
            with pytest.raises(ConnectionClosed) as caught:
                await talk.hear()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012
        assert await asyncio.wait_for(process.wait(), 10) == 0
    await until(lambda: not runtime_dir.exists())


async def test_sighup_ends_a_producer_like_ctrl_c(cli: Cli) -> None:
    async with cli.serving():
        process = await cli.start("synth", "--rate", "10")
        assert process.stderr is not None
        assert (await process.stderr.readline()).startswith(b"publishing")
        process.send_signal(signal.SIGHUP)
        assert await asyncio.wait_for(process.wait(), 10) == 130


async def test_nohup_is_respected(cli: Cli) -> None:
    # Not nohup itself, which would change the streams too.
    ignoring = f"trap '' HUP; exec {sys.executable} -m tickcast serve --port 0"
    process = await asyncio.create_subprocess_shell(
        ignoring, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=cli.environment
    )
    cli.processes.append(process)
    assert process.stdout is not None
    address = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().split()[-1]
    process.send_signal(signal.SIGHUP)
    async with httpx.AsyncClient() as client:
        for _ in range(5):
            assert (await client.get(f"{address}/health")).status_code == 200
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 10) == 0


def options_with_values() -> list[tuple[list[str], click.Option]]:
    found = []
    root = click.Context(tickcast)
    for name in COMMANDS:
        command = tickcast.get_command(root, name)
        parts = (
            {(name, each): sub for each, sub in command.commands.items()}
            if isinstance(command, click.Group)
            else {(name,): command}
        )
        for words, part in parts.items():
            assert part is not None
            found += [
                (list(words), parameter)
                for parameter in part.params
                if isinstance(parameter, click.Option) and not parameter.is_flag
            ]
    return found


def test_empty_values_are_refused(shell: Shell) -> None:
    options = options_with_values()
    assert len(options) > 80
    for words, parameter in options:
        option = parameter.opts[0]
        spellings = [[option, ""], [option, " "], [f"{option}="]]
        for spelling in spellings:
            done = shell.run(*words, *spelling)
            assert (done.code, done.out) == (2, ""), (words, spelling)
            assert done.err == (
                f"tickcast: {option}: the value is empty; give one, or leave the option out\n"
            )
    assert shell.run("watch", "").err.startswith("tickcast: an argument is empty")
