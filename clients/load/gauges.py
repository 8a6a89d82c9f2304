"""Processor time and memory of processes on this machine, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from feed.errors import InvalidSettings

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """What some processes have used so far, and hold now."""

    cpu_s: float
    rss_bytes: int


def read_usage(pids: Iterable[int], proc: Path = Path("/proc")) -> Usage | None:
    """The sum over some processes; None when one of them is gone."""
    cpu_s, rss_bytes = 0.0, 0
    try:
        for pid in pids:
            cpu_s += _cpu_s((proc / str(pid) / "stat").read_text("ascii", "replace"))
            rss_bytes += _rss_bytes((proc / str(pid) / "status").read_text("ascii", "replace"))
    except (OSError, ValueError, IndexError):
        return None
    return Usage(cpu_s, rss_bytes)


def check_pids(pids: Sequence[int], proc: Path = Path("/proc")) -> None:
    """Refuse what can't be measured.

    Raises:
        InvalidSettings: there is no such process, or no /proc on this system.
    """
    for pid in pids:
        if read_usage([pid], proc) is None:
            raise InvalidSettings(f"--pid {pid}: no such process in {proc}")


def _cpu_s(stat: str) -> float:
    # The name of the program comes in brackets and may hold anything: count from behind it.
    fields = stat.rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def _rss_bytes(status: str) -> int:
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
