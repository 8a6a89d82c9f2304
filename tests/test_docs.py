"""The Python programs in the documentation, each run as it stands but for the server's address."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from feed.broker.publisher import Publisher
from feed.selfsigned import Pair
from feed.settings import Settings
from feed.tasks import end_tasks
from feed.times import Time
from producers.pacing import Pacer, play
from producers.synthetic import generate, symbol_names
from tests.conftest import RunningServer, running_server

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/client.md")
ENOUGH_LINES = 3
GOES_ON_S = 1.0


class Program(NamedTuple):
    """A block of Python in a page, after the heading that it stands under."""

    page: str
    heading: str
    text: str


def programs(page: str) -> list[Program]:
    text = (ROOT / page).read_text("utf-8")
    found = []
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        heading = re.findall(r"^#+ (.*)$", text[: match.start()], re.MULTILINE)[-1]
        found.append(Program(page, heading, match[1]))
    return found


ALL = [program for page in PAGES for program in programs(page)]


@pytest.fixture
async def market(publisher: Publisher) -> AsyncIterator[None]:
    """A made-up market that has been open for a while."""
    symbols = symbol_names(5)
    past = generate(symbols, 500, 1, Time.now())
    await publisher.publish([next(past) for _ in range(3000)])
    await publisher.drain()
    now = generate(symbols, 500, 2, Time.now())
    task = asyncio.create_task(play(now, publisher, Pacer()))
    yield
    await end_tasks([task])


@pytest.mark.parametrize("program", ALL, ids=lambda each: f"{each.page}: {each.heading}")
async def test_programs_of_the_documentation_run(
    program: Program, market: None, server: RunningServer, secure: Settings, redis_url: str,
    pair: Pair,
) -> None:  # fmt: skip
    async with running_server(secure, redis_url) as safe:
        is_secure = "wss://" in program.text
        where = (safe.stream if is_secure else server.stream).partition("://")[2]
        text = program.text.replace("127.0.0.1:8000/stream", where)
        assert text != program.text
        # Beside the certificate, which has the name that the demo gives it.
        program_file = pair.cert.with_name("program.py")
        program_file.write_text(text)
        await run(program_file, "default" if "alpaca" in text else "error")


async def run(program: Path, warnings: str) -> None:
    """Run a program until it ends, or has said enough and goes on: then it is ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-W", warnings, program.name, cwd=program.parent,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    said = 0
    try:
        async with asyncio.timeout(30) as patience:
            while await process.stdout.readline():
                said += 1
                if said == ENOUGH_LINES:
                    patience.reschedule(asyncio.get_running_loop().time() + GOES_ON_S)
            assert await process.wait() == 0, await process.stderr.read()
    except TimeoutError:
        assert said >= ENOUGH_LINES
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
