"""Run the Python programs in the documentation unchanged, except for addresses."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from feed.transport.tls import (
    CertificateFiles,
)
from tests.conftest import running_server
from tests.programs import run_program
from tests.tickcast.client.tapes import write_tape
from tickcast.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/client.md", "docs/publishing.md")


class Program(NamedTuple):
    """A block of Python in a page, with the heading above it."""

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


@pytest.mark.parametrize("program", ALL, ids=lambda each: f"{each.page}: {each.heading}")
async def test_programs_of_the_documentation_run(
    program: Program, market: None, settings: Settings, secure: Settings, redis_url: str,
    pair: CertificateFiles, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TICKCAST_RUNTIME_DIR", str(settings.runtime_dir))
    tapes = pair.cert.parent
    write_tape(tapes, "es-2013-09-03")
    chosen = secure if "wss://" in program.text else settings
    async with running_server(replace(chosen, tapes=str(tapes)), redis_url) as server:
        where = server.stream.partition("://")[2]
        text = program.text.replace("127.0.0.1:8000/stream", where)
        text = text.replace("redis://127.0.0.1:6379", redis_url)
        assert text != program.text or "Publisher(feed=" in text
        # Next to the certificate, whose name is the demo's default.
        program_file = pair.cert.with_name("program.py")
        program_file.write_text(text)
        warnings = "default" if "alpaca" in text else "error"
        command = [sys.executable, "-u", "-W", warnings, program_file.name]
        await run_program(command, program_file.parent)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_lists_every_target_that_has_a_description() -> None:
    described = re.findall(r"^(\S+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert [line.split()[1] for line in shown.stdout.splitlines()] == described
    assert "e2e" in described
