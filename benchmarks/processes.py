"""Start, pin, measure and stop the processes of a benchmark."""

from __future__ import annotations

import atexit
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

SERVER_CORE = 0
LOAD_CORE = 1
QUIET = 0.08
_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 3.0
_AUTOGROUP = Path("/proc/self/autogroup")
_HERE = Path(__file__).parent


class CannotStart(Exception):
    """A server didn't start; the message says why."""


class ServerProcess:
    """A server process on the first core, with its CPU and memory use.

    Args:
        command: the command to run. It prints a line as soon as it listens.
        environment: variables to add to the environment.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            cwd=_HERE,
            env={**os.environ, **environment},
            preexec_fn=_pin_server,  # noqa: PLW1509 - we have no threads
        )
        self.pid = self._process.pid

    def wait_for_port(self, port: int = 0) -> int:
        """Wait until the server listens and return its port.

        Args:
            port: the port if it is known, or 0 to read it from the server's output.

        Raises:
            CannotStart: the server isn't ready in time, or has ended.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self.is_running and time.monotonic() < deadline:
            if port and _accepts(port):
                return port
            wait_s = 0.02 if port else 0.5
            if select.select([self._process.stdout], [], [], wait_s)[0] and not port:
                line = self._process.stdout.readline().decode()
                if line.strip():
                    return int(re.split(r"\D", line.strip())[-1])
        raise CannotStart("the server has ended" if not self.is_running else "no answer in time")

    def cpu_s(self) -> float:
        """Return the processor time of all its threads so far, without children."""
        return cpu_s(self.pid)

    def resident_kb(self) -> int:
        """Return the memory in use."""
        return resident_kb(self.pid)

    def peak_kb(self) -> int:
        """Return the peak memory use."""
        return resident_kb(self.pid, "VmHWM")

    @property
    def is_running(self) -> bool:
        """Whether the process is still running."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Terminate the server. Kill it if the shutdown takes too long."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _pin_server() -> None:
    os.sched_setaffinity(0, {SERVER_CORE})


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def cpu_s(pid: int) -> float:
    """Return the processor time of a process, including threads that have ended.

    Its POSIX CPU clock counts nanoseconds, whereas /proc/PID/stat counts ticks of 10 ms. The clock
    id is the one that clock_getcpuclockid(3) would return.
    """
    return time.clock_gettime(~pid << 3 | 2)


def resident_kb(pid: int, field: str = "VmRSS") -> int:
    """Return the memory in use by a process. The field `VmHWM` is its peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))


def descendants(pid: int) -> Iterator[int]:
    """Yield the children of a process, and their descendants."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from descendants(int(child))


def pin(pid: int, core: int) -> None:
    """Restrict all threads of a process to one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            os.sched_setaffinity(int(task.name), {core})


def core_busy_s(core: int) -> float:
    """Return how long a core has been busy since boot, by all processes."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[:8])
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    raise ValueError(f"no core {core}")


def wait_for_quiet(patience_s: float) -> None:
    """Wait until both cores have been nearly idle for a second, or until the patience runs out."""
    deadline = time.monotonic() + patience_s
    cores = (SERVER_CORE, LOAD_CORE)
    while time.monotonic() < deadline:
        before = [core_busy_s(core) for core in cores]
        time.sleep(1.0)
        busy = [core_busy_s(core) - began for core, began in zip(cores, before, strict=True)]
        if max(busy) < QUIET:
            return


def set_up_load_process(nice: int = 0) -> None:
    """Pin this process to the load's core, allow many sockets, and exit cleanly on SIGTERM.

    Args:
        nice: the niceness of this process and all its children, including the servers.
    """
    try:
        os.nice(nice)
    except PermissionError:
        sys.exit("only root may raise the priority")
    if nice:
        # With autogroups, the kernel first divides time between sessions, so set ours as well.
        with suppress(OSError):
            _AUTOGROUP.write_text(str(nice))
            atexit.register(_AUTOGROUP.write_text, "0")
    if (os.cpu_count() or 1) <= LOAD_CORE:
        sys.exit("two processor cores are needed")
    os.sched_setaffinity(0, {LOAD_CORE})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Children inherit the limit, so it applies to the servers, too.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("terminated"))
