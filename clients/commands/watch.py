"""`tickcast watch`: shows live ticks as a table on a terminal, or as lines elsewhere."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Final

import click

from clients.commands.connecting import (
    Connect,
    ca_option,
    check_symbol,
    connector,
    token_hint,
    token_option,
)
from clients.terminal.board import Board, ConnectionStatus
from clients.terminal.candles import Candles
from clients.terminal.view import Page, ViewRequest
from tickcast.client.accounts import Gap, describe_gap, summarize
from tickcast.client.messages import Refused
from tickcast.client.stream import Stream
from tickcast.commands.options import check_channel
from tickcast.commands.running import run
from tickcast.commands.standard_streams import output_is_gone
from tickcast.commands.terminal import Screen, full_screen, keys_pressed
from tickcast.tasks import cancel_and_wait
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.errors import TickcastError
from tickcast.wire.ticks import CHANNELS
from tickcast.wire.times import Time

# The interval between frames. After a key the next frame comes sooner.
_FRAME_S: Final = 0.2
_KEY_FRAME_S: Final = 0.04
# The minimum pause after a frame, as a multiple of the time that drawing it took. It bounds the
# share of a core that drawing a large terminal takes.
_PAUSE_PER_FRAME: Final = 10
# Ticks are read at this interval, many at a time, which costs less than one by one.
_READ_S: Final = 0.05
_READ_TICKS: Final = 1_000
# The delay before a chart is requested, to skip symbols while a key is held down.
_CHART_DELAY_S: Final = 0.1
_KEYS_MAX: Final = 100
# The number of waiting ticks is shown from here on. Fewer are normal.
_WAITING_SHOWN: Final = 2_000


@click.command()
@click.argument("symbols", nargs=-1, required=True, metavar="SYMBOL…")
@click.option("--url", default="ws://127.0.0.1:8000/stream", show_default=True,
              help="The stream: /stream, or /v2/FEED.")  # fmt: skip
@click.option("--channels", default="trades,quotes", show_default=True,
              help="Comma-separated: " + ", ".join(CHANNELS))  # fmt: skip
@click.option("--encoding", type=click.Choice([each.value for each in Encoding]), default="json",
              show_default=True)  # fmt: skip
@click.option("--audit", is_flag=True,
              help="Show what became of every tick; exit code 1 if some is missing.")  # fmt: skip
@ca_option
@token_option
@click.option("--limit", type=click.IntRange(min=1), help="Stop after that many ticks.")
def watch(
    symbols: tuple[str, ...],
    url: str,
    channels: str,
    encoding: str,
    audit: bool,
    ca_file: str | None,
    token: str | None,
    limit: int | None,
) -> None:
    """Watch symbols live.

    '*' means all symbols, and 'BTC-*' all that begin with BTC-.

    On a terminal, ticks are shown in a table; press ? for a list of keys. Otherwise each tick is
    one line of JSON, to pipe into other programs. With --audit, gaps are reported on stderr, with a
    summary at the end.
    """
    connect = connector(url, ca_file, token)
    for symbol in symbols:
        check_symbol(symbol)
    requested = {name.strip(): list(symbols) for name in channels.split(",")}
    for channel in requested:
        check_channel(channel, "--channels")
    run(_watch(connect, url, Encoding(encoding), requested, audit, token, limit))


async def _watch(
    connect: Connect,
    url: str,
    encoding: Encoding,
    requested: dict[str, list[str]],
    audit: bool,
    token: str | None,
    limit: int | None,
) -> None:
    is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    on_gap = _print_gap if audit and not is_terminal else None
    async with connect(encoding=encoding, on_gap=on_gap) as stream:
        with token_hint(token):
            await stream.subscribe(requested, snapshot=not audit)
        try:
            if is_terminal:
                board = Board(Page.AUDIT if audit else Page.TABLE)
                with full_screen() as screen:
                    await _Viewer(stream, connect, url, board, screen).show(limit)
            else:
                await _print_lines(stream, limit)
        except asyncio.CancelledError:
            # Ctrl-C is the normal way to end a watch, so the audit decides the exit code.
            if not audit or stream.report().balanced:
                raise
        finally:
            if audit:
                for line in summarize(stream.report()):
                    click.echo(f"tickcast: {line}", err=True)
        if audit and not stream.report().balanced:
            raise TickcastError("some ticks are not accounted for")


def _print_gap(gap: Gap) -> None:
    click.echo(f"tickcast: {describe_gap(gap)}", err=True)


async def _print_lines(stream: Stream, limit: int | None) -> None:
    count = 0
    async for tick in stream:
        sys.stdout.buffer.write(encode(tick, Encoding.JSON) + b"\n")
        if not stream.waiting:
            sys.stdout.buffer.flush()
        count += 1
        if count == limit or output_is_gone():
            sys.stdout.buffer.flush()
            return


class _Viewer:
    """Passes ticks and keys to a board, and draws its frames."""

    def __init__(
        self, stream: Stream, connect: Connect, url: str, board: Board, screen: Screen
    ) -> None:
        self._stream = stream
        self._connect = connect
        self._url = url
        self._board = board
        self._screen = screen
        # Keys are handled before the next frame.
        self._keys: deque[str] = deque(maxlen=_KEYS_MAX)
        self._key_pressed = asyncio.Event()
        self._quit = asyncio.Event()
        # What the last frame depended on, apart from the board.
        self._drawn: tuple[tuple[int, int], ConnectionStatus] | None = None
        self._chart: asyncio.Task[None] | None = None
        self._switch: asyncio.Task[None] | None = None

    async def show(self, limit: int | None) -> None:
        """Show the stream until the user quits, it ends, or `limit` ticks have arrived.

        Raises TickcastError if the stream fails.
        """
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[object]] = [
            loop.create_task(self._read_ticks(limit)),
            loop.create_task(self._draw_frames()),
            loop.create_task(self._quit.wait()),
        ]
        try:
            with keys_pressed(self._on_key):
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            await cancel_and_wait([*tasks, *filter(None, (self._chart, self._switch))])

    async def _read_ticks(self, limit: int | None) -> None:
        left = limit
        while ticks := await self._stream.read(min(_READ_TICKS, left or _READ_TICKS)):
            self._board.add_ticks(ticks, time.monotonic())
            if left is not None:
                left -= len(ticks)
                if not left:
                    return
            await asyncio.sleep(0 if self._stream.waiting >= _READ_TICKS else _READ_S)

    def _on_key(self, key: str) -> None:
        self._keys.append(key)
        self._key_pressed.set()

    def _handle_key(self, key: str) -> None:
        request = self._board.press(key, time.monotonic())
        loop = asyncio.get_running_loop()
        if request is ViewRequest.QUIT:
            self._quit.set()
        elif request is ViewRequest.ENCODING and (self._switch is None or self._switch.done()):
            other = Encoding.MSGPACK if self._stream.encoding is Encoding.JSON else Encoding.JSON
            self._switch = loop.create_task(self._stream.switch(other))
        elif request in (ViewRequest.CHART, ViewRequest.NO_CHART):
            if self._chart is not None:
                self._chart.cancel()
                self._chart = None
            if request is ViewRequest.CHART and (candles := self._board.begin_chart()) is not None:
                self._chart = loop.create_task(self._fill_chart(candles))

    async def _fill_chart(self, candles: Candles) -> None:
        """Receive past and then live trades for a chart.

        They come on a separate connection, so that the accounts of the main one stay as they are.
        """
        await asyncio.sleep(_CHART_DELAY_S)
        row = self._board.market.rows.get(candles.symbol)
        start = candles.history_from(row.time if row else Time.now())
        try:
            async with self._connect(encoding=self._stream.encoding) as stream:
                try:
                    await stream.subscribe(trades=[candles.symbol], start=int(start))
                except Refused as error:
                    self._board.show_message(f"no history: {error}", time.monotonic())
                    await stream.subscribe(trades=[candles.symbol])
                while ticks := await stream.read():
                    candles.add_trades(ticks)
                    self._board.changed = True
                    await asyncio.sleep(0 if stream.waiting else _READ_S)
        except TickcastError as error:
            self._board.show_message(f"no candles: {error}", time.monotonic())

    async def _draw_frames(self) -> None:
        while True:
            began = time.monotonic()
            while self._keys:
                self._handle_key(self._keys.popleft())
            self._draw(began)
            took_s = time.monotonic() - began
            with suppress(TimeoutError):
                async with asyncio.timeout(max(_FRAME_S, _PAUSE_PER_FRAME * took_s)):
                    await self._key_pressed.wait()
            self._key_pressed.clear()
            await asyncio.sleep(began + _KEY_FRAME_S - time.monotonic())

    def _draw(self, now: float) -> None:
        """Draw a frame if there is something new and the terminal has accepted the last one."""
        stream, size = self._stream, self._screen.size
        waiting = stream.waiting if stream.waiting >= _WAITING_SHOWN else 0
        status = ConnectionStatus(self._url, stream.encoding.value, stream.connected, waiting)
        self._board.update_rates(now)
        if self._screen.is_ready and (self._board.changed or self._drawn != (size, status)):
            self._drawn = (size, status)
            self._screen.draw(self._board.render(*size, now, status, stream.report), size)
