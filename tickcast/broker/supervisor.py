"""Keep a program running for as long as standard input stays open, then remove its files.

This script supervises the embedded store. Its parent holds the other end of a pipe, which closes
however the parent ends, even with SIGKILL. To start fast, it uses only the standard library:

    python -I -S supervisor.py keep|remove DIRECTORY COMMAND [ARGUMENT …]

If the program exits, it is restarted, unless it has exited quickly several times in a row. At the
end the supervisor removes the directory's `store.*` files, and with `remove` the directory too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1
_STOP_TIMEOUT_S = 3.0
_POLL_S = 0.5
_QUICK_EXIT_S = 1.0
_QUICK_EXITS_MAX = 3


def supervise(directory: str, command: list[str], *, remove: bool) -> int:
    """Run the program, wait and clean up; return the program's exit code."""
    # The terminal sends Ctrl-C to the whole process group. The pipe says when to stop.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    quick_exits = 0
    try:
        while True:
            began = time.monotonic()
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_prepare_child)  # noqa: PLW1509
            if _parent_ends_first(child):
                return _stop(child)
            quick_exits = quick_exits + 1 if time.monotonic() - began < _QUICK_EXIT_S else 0
            if quick_exits == _QUICK_EXITS_MAX:
                return child.wait()
    finally:
        _clean(directory, remove)


def _parent_ends_first(child: subprocess.Popen[bytes]) -> bool:
    """Wait, and return True when the parent has ended, False if the child ends first."""
    while child.poll() is None:
        readable, _, _ = select.select([sys.stdin], [], [], _POLL_S)
        if readable and not os.read(0, 1):
            return True
    return False


def _prepare_child() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        # Have the kernel kill the child if this script is killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop(child: subprocess.Popen[bytes]) -> int:
    child.terminate()
    try:
        return child.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _clean(directory: str, remove: bool) -> None:
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(directory) if name.startswith("store.")]  # noqa: PTH208
        # Remove the lock last: after that another server may start a store and create such files.
        for name in sorted(names, key=lambda name: name.endswith(".lock")):
            os.unlink(os.path.join(directory, name))  # noqa: PTH108, PTH118
        if remove:
            os.rmdir(directory)  # noqa: PTH106 - pathlib takes too long to import


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[2], sys.argv[3:], remove=sys.argv[1] == "remove"))
