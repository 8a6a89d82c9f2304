"""CPU time and memory of processes on this machine, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tickcast.wire.errors import InvalidSettings

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


class ProcessUsage(NamedTuple):
    """The CPU time that processes have used so far, and their current memory."""

    cpu_s: float
    rss_bytes: int


def read_usage(pids: Iterable[int], proc: Path = Path("/proc")) -> ProcessUsage | None:
    """Return the total over some processes, or None if one of them is gone."""
    cpu_s, rss_bytes = 0.0, 0
    try:
        for pid in pids:
            cpu_s += _cpu_s((proc / str(pid) / "stat").read_text("ascii", "replace"))
            rss_bytes += _rss_bytes((proc / str(pid) / "status").read_text("ascii", "replace"))
    except (OSError, ValueError, IndexError):
        return None
    return ProcessUsage(cpu_s, rss_bytes)


def check_pids(pids: Sequence[int], proc: Path = Path("/proc")) -> None:
    """Check that the processes can be measured.

    Raises:
        InvalidSettings: a process does not exist, or this system has no /proc.
    """
    for pid in pids:
        if read_usage([pid], proc) is None:
            raise InvalidSettings(f"--pid {pid}: no such process in {proc}")


def _cpu_s(stat: str) -> float:
    # The program name is in parentheses and may contain anything: count fields after it.
    fields = stat.rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def _rss_bytes(status: str) -> int:
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
