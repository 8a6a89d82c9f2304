"""A large number of auditors in a separate process, since one core can't run them and the rest.

The test writes one line per question, and the crowd answers each with one line.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle
from typing import Any, Final

from tests.faults.accounts import Sums
from tests.faults.auditor import Auditor, Message
from tests.faults.children import end_with_parent, until
from tickcast.tasks import cancel_and_wait
from tickcast.wire.encoding import Encoding

_PATIENCE_S: Final = 40.0


class Member(Auditor):
    """Measure the latency of ticks, after a reconnect and catch-up, or on request.

    Attributes:
        measures: whether the test has requested it.
        caught_up_us: when it got the first tick that was published after its last subscription was
            confirmed; 0 until then.
        late_us: two latencies of each tick that was published after that: until its arrival here,
            and until the server wrote it.
    """

    def __init__(self, url: str, symbol: str, encoding: Encoding) -> None:
        super().__init__(url, [symbol], encoding)
        self.stamps = True
        self.measures = False
        self.caught_up_us = 0
        self.late_us: list[tuple[int, int]] = []
        self._subscribed_us = 0

    @property
    def is_back(self) -> bool:
        return self.reconnects > 0 and self.caught_up_us > 0

    def on_subscription(self) -> None:
        self._subscribed_us = _now_us()
        self.caught_up_us = 0

    def on_tick(self, message: Message) -> None:
        now, published = _now_us(), message["tr"]
        if not self.caught_up_us:
            if published > self._subscribed_us:
                self.caught_up_us = now
        elif (self.measures or self.reconnects) and published > self.caught_up_us:
            self.late_us.append((now - published, message["tw"] - published))


def _now_us() -> int:
    return time.time_ns() // 1000


class Crowd:
    """The test's side of the crowd.

    Args:
        words: the arguments of the program.
        module: the program.
    """

    def __init__(self, *words: object, module: str = __name__) -> None:
        self._words = [module, *map(str, words)]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; return when all are subscribed."""
        await self.launch()
        await self.ask("live")

    async def launch(self) -> None:
        """Start only its process."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *self._words,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            preexec_fn=end_with_parent,
        )  # fmt: skip

    async def ask(self, question: str, **more: Any) -> Any:
        """Ask a question and wait for the answer.

        `live`: all are subscribed. `measure`: they measure from now on. `back`: all have caught up
        after a reconnect; the answer contains the wall-clock times when half of them and when the
        last one had. `end`: all have received the tick `id`; the answer has sums and latencies.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"ask": question, **more}).encode() + b"\n")
        async with asyncio.timeout(_PATIENCE_S + 30):
            answer = await self._process.stdout.readline()
        assert answer, "the crowd is gone"
        return json.loads(answer)

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.communicate()


# -------------------------------------------------------------------------------- the child process


async def serve(url: str, symbol: str, size: int) -> None:
    """Answer questions until standard input is closed."""
    members = [Member(url, symbol, encoding) for encoding, _ in zip(cycle(Encoding), range(size))]
    tasks = []
    for member in members:
        member.expect_from_first()
        tasks.append(asyncio.create_task(member.run()))
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    answering = asyncio.create_task(_answer_all(lines, symbol, members))
    try:
        # Members run forever, so one that has ended has failed.
        await asyncio.wait([answering, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in (answering, *tasks):
            if task.done():
                task.result()
    finally:
        await cancel_and_wait([answering, *tasks])


async def _answer_all(lines: asyncio.StreamReader, symbol: str, members: list[Member]) -> None:
    while line := await lines.readline():
        answer = await _answer(json.loads(line), symbol, members)
        print(json.dumps(answer), flush=True)  # noqa: T201


async def _answer(asked: dict[str, Any], symbol: str, members: list[Member]) -> object:
    question = asked["ask"]
    if question == "live":
        await until(lambda: all(each.live for each in members), _PATIENCE_S, question)
        return True
    if question == "measure":
        for member in members:
            member.measures = True
        return True
    if question == "back":
        await until(lambda: all(each.is_back for each in members), _PATIENCE_S, question)
        moments = sorted(each.caught_up_us / 1e6 for each in members)
        return moments[len(moments) // 2], moments[-1]
    await until(lambda: all(each.has(symbol, asked["id"]) for each in members), _PATIENCE_S, "end")
    late = [late for each in members for late in each.late_us]
    arrived, written = [arrived for arrived, _ in late], [written for _, written in late]
    return {
        "measured": len(late),
        "sums": asdict(sum((each.sums for each in members), Sums())),
        "reconnects": sum(each.reconnects for each in members),
        "p50_ms": _percentile(arrived, 50),
        "p99_ms": _percentile(arrived, 99),
        "p99_until_written_ms": _percentile(written, 99),
    }


def _percentile(values_us: Sequence[int], percent: int) -> float:
    """Return a percentile in milliseconds, or 0 for an empty list."""
    if not values_us:
        return 0.0
    ordered = sorted(values_us)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] / 1000


if __name__ == "__main__":
    _, *words = sys.argv
    asyncio.run(serve(words[0], words[1], int(words[2])))
