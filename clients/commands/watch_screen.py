"""The screen of `tickcast watch`: passes ticks and keys to a board, and draws its frames."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Protocol

from clients.terminal.board import Board, ConnectionStatus
from clients.terminal.candles import Candles
from clients.terminal.view import Page, ViewRequest
from tickcast.client.accounts import Gap
from tickcast.client.messages import Refused
from tickcast.client.stream import Stream
from tickcast.commands.keyboard import keys_pressed
from tickcast.commands.screen import Screen, whole_screen
from tickcast.tasks import cancel_and_wait
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import TickcastError
from tickcast.wire.times import Time

_FRAME_S: Final = 0.2
_KEY_FRAME_S: Final = 0.04
"""The shorter interval to the next frame after a key."""
_DRAWING_PACE: Final = 10
"""The minimum pause after a frame, as a multiple of the time that drawing it took."""
_READ_S: Final = 0.05
"""The interval at which ticks are read, many at a time."""
_READ_TICKS: Final = 1_000
_CHART_WAIT_S: Final = 0.1
"""The delay before a chart is requested, to skip symbols while a key is held down."""
_KEYS_MAX: Final = 100
_WAITING_SHOWN: Final = 2_000


class Dial(Protocol):
    """Opens another connection to the same server, as the same user."""

    def __call__(
        self, *, encoding: Encoding, on_gap: Callable[[Gap], None] | None = None
    ) -> AbstractAsyncContextManager[Stream]: ...


async def show(stream: Stream, dial: Dial, url: str, audit: bool, limit: int | None) -> None:
    """Show a stream until the user quits, it ends, or `limit` ticks have arrived.

    Raises:
        TickcastError: the stream failed.
    """
    with whole_screen() as screen:
        viewer = _Viewer(stream, dial, url, Board(Page.AUDIT if audit else Page.TABLE), screen)
        with keys_pressed(viewer.press):
            await viewer.run(limit)


class _Viewer:
    def __init__(self, stream: Stream, dial: Dial, url: str, board: Board, screen: Screen) -> None:
        self._stream = stream
        self._dial = dial
        self._url = url
        self._board = board
        self._screen = screen
        self._keys: deque[str] = deque(maxlen=_KEYS_MAX)
        self._pressed = asyncio.Event()
        self._quit = asyncio.Event()
        self._drawn: tuple[tuple[int, int], ConnectionStatus] | None = None
        self._chart: asyncio.Task[None] | None = None
        self._switch: asyncio.Task[None] | None = None

    async def run(self, limit: int | None) -> None:
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(self._read(limit)),
            loop.create_task(self._draw_forever()),
            loop.create_task(self._until_quit()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await cancel_and_wait([*tasks, *filter(None, (self._chart, self._switch))])

    async def _until_quit(self) -> None:
        await self._quit.wait()

    async def _read(self, limit: int | None) -> None:
        left = limit
        while ticks := await self._stream.read(min(_READ_TICKS, left or _READ_TICKS)):
            self._board.update(ticks, time.monotonic())
            if left is not None:
                left -= len(ticks)
                if not left:
                    return
            await asyncio.sleep(0 if self._stream.waiting >= _READ_TICKS else _READ_S)

    # -- keys

    def press(self, key: str) -> None:
        """Queue a key, which is handled before the next frame."""
        self._keys.append(key)
        self._pressed.set()

    def _obey(self, key: str) -> None:
        match self._board.press(key, time.monotonic()):
            case ViewRequest.QUIT:
                self._quit.set()
            case ViewRequest.CHART:
                self._end_chart()
                if (candles := self._board.begin_chart()) is not None:
                    self._chart = asyncio.get_running_loop().create_task(self._fill(candles))
            case ViewRequest.NO_CHART:
                self._end_chart()
            case ViewRequest.ENCODING:
                self._switch_encoding()

    def _end_chart(self) -> None:
        if self._chart is not None:
            self._chart.cancel()
            self._chart = None

    def _switch_encoding(self) -> None:
        if self._switch is not None and not self._switch.done():
            return
        other = Encoding.MSGPACK if self._stream.encoding is Encoding.JSON else Encoding.JSON
        self._switch = asyncio.get_running_loop().create_task(self._stream.switch(other))

    async def _fill(self, candles: Candles) -> None:
        """Fetch past and then live trades for a chart, through a separate connection.

        So they don't affect the accounting of the main connection.
        """
        await asyncio.sleep(_CHART_WAIT_S)
        row = self._board.market.rows.get(candles.symbol)
        start = candles.history_from(row.latest if row else Time.now())
        try:
            async with self._dial(encoding=self._stream.encoding) as stream:
                try:
                    await stream.subscribe(trades=[candles.symbol], start=int(start))
                except Refused as error:
                    self._say(f"no history: {error}")
                    await stream.subscribe(trades=[candles.symbol])
                while ticks := await stream.read():
                    candles.add(ticks)
                    self._board.changed = True
                    await asyncio.sleep(0 if stream.waiting else _READ_S)
        except TickcastError as error:
            self._say(f"no candles: {error}")

    def _say(self, text: str) -> None:
        self._board.show_message(text, time.monotonic())

    # -- frames

    async def _draw_forever(self) -> None:
        while True:
            began = time.monotonic()
            while self._keys:
                self._obey(self._keys.popleft())
            self._draw(began)
            took_s = time.monotonic() - began
            with suppress(TimeoutError):
                async with asyncio.timeout(max(_FRAME_S, _DRAWING_PACE * took_s)):
                    await self._pressed.wait()
            self._pressed.clear()
            await asyncio.sleep(began + _KEY_FRAME_S - time.monotonic())

    def _draw(self, now: float) -> None:
        """Draw a frame if there is something new and the terminal has accepted the last one."""
        stream, size = self._stream, self._screen.size
        waiting = stream.waiting if stream.waiting >= _WAITING_SHOWN else 0
        status = ConnectionStatus(self._url, stream.encoding.value, stream.connected, waiting)
        self._board.turn(now)
        if self._screen.is_ready and (self._board.changed or self._drawn != (size, status)):
            self._drawn = (size, status)
            lines = self._board.render(*size, now, status, stream.report)
            self._screen.draw(lines, size)
