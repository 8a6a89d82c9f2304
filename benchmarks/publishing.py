"""The publisher: a separate process on the load's core, with a fixed schedule.

Run as a program, it reads orders from standard input, one JSON object per line, and answers each
order with another object. `Publishing` is the other end.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import peers
import uvloop
from processes import cpu_s
from workloads import BY_NAME

from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.ticks import Trade
from tickcast.wire.times import Time

_NICE = -10
_TFD_TIMER_ABSTIME = 1
_ANSWER_TIMEOUT_S = 5.0
_LATE_S = 1.0
_TURN_NS = 1_000_000
"""The minimum time between wakeups. More frequent ones would take too much of the clients' core."""


class Report(NamedTuple):
    """The publisher's report: the number of ticks, and the 99th percentile of its lateness."""

    published: int
    late_ms: float


class Publishing:
    """The publisher's process."""

    def __init__(self, peer: str, workload: str, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), peer, workload, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._rate = BY_NAME[workload].rate
        self._answer(_ANSWER_TIMEOUT_S * 2)

    def start(self, seconds: float, seed: int) -> float:
        """Start to publish the schedule of this seed. Returns the wall-clock time of its start."""
        assert self._process.stdin is not None
        # The publisher prepares the ticks first, at about 30 µs each.
        begin = time.time() + 0.3 + seconds * self._rate * 60e-6
        order = {"begin_ns": int(begin * 1e9), "seconds": seconds, "seed": seed}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return begin

    def report(self) -> Report | None:
        """Return the answer to the last order, or None if the publisher is stuck."""
        answer = self._answer(_ANSWER_TIMEOUT_S)
        return None if answer is None else Report(**answer)

    def cpu_s(self) -> float:
        """Return the processor time used so far."""
        return cpu_s(self._process.pid)

    def _answer(self, timeout_s: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            return None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def stop(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class Timer:
    """Waits until a wall-clock time, without rounding to whole milliseconds as event loops do.

    It uses timerfd(2), which Python only supports since 3.13.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._fired = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._on_fire)

    async def wait_until(self, moment_ns: int) -> None:
        """Return at that time, or at once if it has passed."""
        self._fired.clear()
        spec = struct.pack("qqqq", 0, 0, *divmod(moment_ns, 10**9))
        self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, spec, None)
        await self._fired.wait()

    def _on_fire(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._fd, 8)
        self._fired.set()


async def work(peer: str, workload: str, directory: Path) -> None:
    """Carry out orders until the input ends."""
    feed = peers.load(peer).feed(directory)
    await feed.open()
    print("{}", flush=True)
    timer = Timer()
    sequence: Counter[str] = Counter()
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        due = []
        ticks = []
        for offset_s, symbol in BY_NAME[workload].schedule(order["seconds"], order["seed"]):
            # Avoid whole microseconds, so that all times have the same length as text.
            at_ns = order["begin_ns"] + int(offset_s * 1e6) * 1000 + 1
            sequence[symbol] += 1
            trade = Trade(
                symbol=symbol,
                venue="V",
                price=1640.25,
                size=3,
                time=Time(at_ns),
                seq=sequence[symbol],
            )
            due.append(at_ns)
            ticks.append(feed.prepare(symbol, encode([trade], Encoding.JSON), at_ns))
        gc.collect()
        gc.freeze()
        report = await publish(feed, timer, due, ticks)
        print(json.dumps(report._asdict()), flush=True)
    await feed.close()


async def publish(feed: peers.Feed, timer: Timer, due: list[int], ticks: list[Any]) -> Report:
    """Publish each tick when it is due. Ticks that are already due are sent together."""
    late: list[int] = []
    last = due[-1] + int(_LATE_S * 1e9)
    done, turn = 0, 0
    while done < len(due):
        now = time.time_ns()
        if now > last:
            break  # The server doesn't accept ticks fast enough.
        upto = done
        while upto < len(due) and due[upto] <= now:
            upto += 1
        if upto == done:
            turn = max(due[done], turn + _TURN_NS)
            await timer.wait_until(turn)
            continue
        try:
            await feed.send(ticks[done:upto])
        except TimeoutError:
            break
        late += (now - moment for moment in due[done:upto])
        done = upto
        await asyncio.sleep(0)
    late.sort()
    return Report(done, late[len(late) * 99 // 100] / 1e6 if late else 0.0)


def main() -> None:
    gc.disable()
    # The publisher must be on time although the clients keep this core busy. Only root may do this.
    with suppress(PermissionError):
        os.nice(_NICE)
    peer, workload, directory = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work(peer, workload, Path(directory)))


if __name__ == "__main__":
    main()
