"""What a terminal shows of a replay, and which keys steer it."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from feed.broker.steering import Command, Pause, Resume, Seek, Speed, Step
from feed.cli.keyboard import keys_pressed
from feed.errors import ReplayFailed
from feed.playback import MAX, Mode, State, show_speed
from feed.times import NS_PER_SECOND
from producers.replaying import Replay

SPEEDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, MAX)
"""What + and - go through."""
_SEEK_S: Final = 10
"""The arrows go as far as is played in this time."""
_REFRESH_S: Final = 0.2
_WAITING_MAX: Final = 10
_LINE_FIRST_S: Final = 5.0
_LINE_MAX_S: Final = 60.0
_MARKS: Final = {Mode.PLAYING: "▶", Mode.PAUSED: "⏸", Mode.ENDED: "■"}


async def shown(replay: Replay) -> None:
    """Show a replay on the terminal and take its keys, until cancelled.

    Where standard error is not a terminal, a line is printed now and then.
    """
    steering = _Steering(replay)
    with keys_pressed(steering.press):
        if sys.stderr.isatty():
            await _show(replay)
        else:
            await _print_lines(replay)


async def _print_lines(replay: Replay) -> None:
    """Print where the replay stands: after 5 s, 10 s more and so on, at last once a minute."""
    meter = Meter()
    interval_s = _LINE_FIRST_S
    printed: tuple[State, int] | None = None
    while True:
        await asyncio.sleep(interval_s)
        interval_s = min(2 * interval_s, _LINE_MAX_S)
        state, count = replay.state, replay.count
        if (state, count) != printed:
            printed = state, count
            click.echo(f"tickcast: {line_of(state, count, meter.read(count))}", err=True)


def line_of(state: State, count: int, rate: float) -> str:
    """Where a replay stands, as a line."""
    return (
        f"{state.mode.value} at {_position(state)}, {share_of(state):.0%} of it,"
        f" {words_of(state.speed)}, {count:,} ticks, {rate:,.0f} ticks/s"
    )


def _position(state: State) -> str:
    """To the millisecond."""
    return state.position.rfc3339()[:23].rstrip("Z") + "Z"


async def _show(replay: Replay) -> None:
    with Progress(
        TextColumn("{task.fields[mark]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[position]}", style="cyan"),
        TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=1.0, mark="", position="", figures="")
        meter = Meter()
        while True:
            state = replay.state
            bar.update(
                task,
                completed=share_of(state),
                mark=_MARKS[state.mode],
                position=_position(state),
                figures=f"{words_of(state.speed)}, {meter.read(replay.count):,.0f} ticks/s",
            )
            bar.refresh()
            await asyncio.sleep(_REFRESH_S)


class Meter:
    """Ticks per second, over the last second or so."""

    def __init__(self) -> None:
        self._since_s = time.monotonic()
        self._count = 0
        self._rate = 0.0

    def read(self, count: int) -> float:
        """The rate; `count` are all ticks so far."""
        elapsed_s = time.monotonic() - self._since_s
        if elapsed_s >= 1:
            self._rate = (count - self._count) / elapsed_s
            self._since_s, self._count = time.monotonic(), count
        return self._rate


class _Steering:
    """Does what keys say."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._asking: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    def press(self, key: str) -> None:
        """A key was pressed; one without a meaning does nothing."""
        if key == "q":
            self._replay.stop()
            return
        if len(self._asking) < _WAITING_MAX:
            task = asyncio.get_running_loop().create_task(self._obey(key))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _obey(self, key: str) -> None:
        # One after the other: what a key means depends on what the one before has done.
        async with self._turn:
            command = command_of(key, self._replay.state)
            if command is not None:
                with suppress(ReplayFailed):  # It may be over.
                    await self._replay.ask(command)


def command_of(key: str, state: State) -> Command | None:
    """What a key means where the replay stands so."""
    match key:
        case " ":
            return Pause(id="key") if state.mode is Mode.PLAYING else Resume(id="key")
        case "left" | "right":
            step = _seek_ns(state)
            position = state.position + (step if key == "right" else -step)
            return Seek(id="key", position=min(max(position, state.first), state.last))
        case "+" | "=" | "-":
            return Speed(id="key", speed=_next_speed(state.speed, faster=key != "-"))
        case "s":
            return Step(id="key")
    return None


def _seek_ns(state: State) -> int:
    span = state.last - state.first
    if state.speed == MAX:
        return span // 20
    return min(span, round(_SEEK_S * state.speed * NS_PER_SECOND))


def _next_speed(speed: float, *, faster: bool) -> float | str:
    if faster:
        return show_speed(min((each for each in SPEEDS if each > speed), default=speed))
    return show_speed(max((each for each in SPEEDS if each < speed), default=speed))


def share_of(state: State) -> float:
    """How much of it is over, from 0 to 1."""
    span = state.last - state.first
    return (state.position - state.first) / span if span else 1.0


def words_of(speed: float) -> str:
    """A speed for people."""
    return "max" if speed == MAX else f"{show_speed(speed)}×"
