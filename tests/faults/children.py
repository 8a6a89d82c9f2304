"""Processes that a test can start, kill, stop and start again."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


async def until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Wait for a condition; `what` names it in the failure."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        await asyncio.sleep(0.005)


class Child:
    """One program, which can be started any number of times. Its output goes to a file."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def launch(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        assert not self.is_running, f"{self.name} is running"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment, preexec_fn=end_with_parent,  # noqa: PLW1509 - no threads here
            )  # fmt: skip

    def kill(self) -> None:
        """Send SIGKILL, which also ends a stopped process."""
        if self.is_running:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> None:
        self.process.terminate()

    def stop(self) -> None:
        """Send SIGSTOP: the process keeps its connections and falls silent."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def ended(self, timeout_s: float) -> int:
        """Wait for its end; return the exit code."""
        await until(lambda: not self.is_running, timeout_s, f"the end of {self.name}")
        return self.process.wait()

    def said(self) -> str:
        """Return all its output so far."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""


def end_with_parent() -> None:
    # A test run that is itself killed must not leave processes behind.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def plain_environment() -> dict[str, str]:
    """Return the environment without any settings of Tickcast."""
    return {name: value for name, value in os.environ.items() if "TICKCAST" not in name}
