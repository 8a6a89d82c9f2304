"""The examples, run as their users would run them; `tests/e2e` opens the example page."""

from __future__ import annotations

import os
import shutil
import sys
from itertools import islice
from pathlib import Path

import pytest

from producers.recordings.csv import CsvRecording
from tests.conftest import ES_TRADES, RunningServer
from tests.faults.source import needs_recording
from tests.programs import run_program
from tickcast.broker.publisher import FeedPublisher

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-u", str(EXAMPLES / name), *arguments]


@needs_recording
async def test_replayed_trades_are_charted(
    server: RunningServer, publisher: FeedPublisher, tmp_path: Path
) -> None:
    await publisher.publish(list(islice(CsvRecording(ES_TRADES, "ES"), 5000)))
    await publisher.flush()
    command = example("chart.py", "ES", "--url", server.stream)
    said = await run_program(command, tmp_path, ends=True)
    assert said[-1].endswith("candles in chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


async def test_a_bot_gives_the_alarm(server: RunningServer, market: None, tmp_path: Path) -> None:
    command = example("alert_bot.py", "--url", server.stream, "--percent", "0.01")
    said = await run_program(command, tmp_path)
    assert all(" % in " in line for line in said)


async def test_a_bot_of_alpacas_library_trades(
    server: RunningServer, market: None, tmp_path: Path
) -> None:
    said = await run_program(example("alpaca_bot.py", "ACME", "--url", server.stream), tmp_path)
    assert {line.split()[1] for line in said} == {"buy", "sell"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_a_session_in_the_shell(server: RunningServer, market: None, tmp_path: Path) -> None:
    tickcast = Path(sys.executable).with_name("tickcast")
    command = ["env", f"TICKCAST={tickcast}", f"PATH={os.environ['PATH']}",
               "sh", str(EXAMPLES / "session.sh"), server.http.removeprefix("http://")]  # fmt: skip
    said = await run_program(command, tmp_path, ends=True)
    assert said[1] == '{"status":"live"}'
