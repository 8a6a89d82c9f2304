"""The scale of the fault tests: `make test` runs the short version, `make faults` the long one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from tests.cli.conftest import cli
from tests.faults.scene import Scene

__all__ = ["cli"]

T = TypeVar("T")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--faults", choices=("short", "long"), default="short", help="how thoroughly")
    group.addoption(
        "--faults-minutes", type=float, default=30.0, help="how long the long soak lasts"
    )


@dataclass(frozen=True)
class Scale:
    """Durations and numbers that depend on the version."""

    long: bool
    minutes: float

    def pick(self, short: T, long: T) -> T:
        return long if self.long else short


@pytest.fixture
def scale(pytestconfig: pytest.Config) -> Scale:
    # The options are unknown if pytest was given a directory above this one.
    return Scale(
        pytestconfig.getoption("--faults", "short") == "long",
        pytestconfig.getoption("--faults-minutes", 30.0),
    )


@pytest.fixture(autouse=True)
def patience(scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer in the short version, because many other tests run beside it."""
    if not scale.long:
        monkeypatch.setattr(Scene, "patience", 5.0)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="tc", dir="/tmp") as directory:
        yield Path(directory)
