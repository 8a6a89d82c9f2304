"""Show a replay on a terminal, and handle its keys."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from producers.simulation.replay import Replay
from tickcast.broker.replays import (
    ControlCommand,
    PauseCommand,
    ResumeCommand,
    SeekCommand,
    SpeedCommand,
    StepCommand,
)
from tickcast.commands.terminal import keys_pressed
from tickcast.wire.errors import ReplayFailed
from tickcast.wire.playback import MAX_SPEED, ReplayMode, ReplayState, format_speed
from tickcast.wire.times import NS_PER_SECOND

# The speeds that + and - select.
_SPEEDS: Final = (
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0), MAX_SPEED,
)  # fmt: skip
# The arrows seek by the amount that is played in this time.
_SEEK_S: Final = 10
_REFRESH_S: Final = 0.2
_KEYS_WAITING_MAX: Final = 10
_FIRST_LINE_AFTER_S: Final = 5.0
_LINE_EVERY_MAX_S: Final = 60.0
_SYMBOLS: Final = {ReplayMode.PLAYING: "▶", ReplayMode.PAUSED: "⏸", ReplayMode.ENDED: "■"}


async def show_replay(replay: Replay) -> None:
    """Show a replay on the terminal and handle keys until cancelled.

    If standard error is not a terminal, print a line now and then.
    """
    handler = _KeyHandler(replay)
    with keys_pressed(handler.press):
        if sys.stderr.isatty():
            await _show_bar(replay)
        else:
            await _print_lines(replay)


async def _print_lines(replay: Replay) -> None:
    """Print the state of the replay after 5 s, 10 s more and so on, up to once a minute."""
    meter = TickRateMeter()
    interval_s = _FIRST_LINE_AFTER_S
    printed: tuple[ReplayState, int] | None = None
    while True:
        await asyncio.sleep(interval_s)
        interval_s = min(2 * interval_s, _LINE_EVERY_MAX_S)
        state, count = replay.state, replay.count
        if (state, count) != printed:
            printed = state, count
            line = (
                f"{state.mode.value} at {_position(state)}, {_share(state):.0%} of it,"
                f" {format_speed_factor(state.speed)}, {count:,} ticks,"
                f" {meter.measure(count):,.0f} ticks/s"
            )
            click.echo(f"tickcast: {line}", err=True)


async def _show_bar(replay: Replay) -> None:
    with Progress(
        TextColumn("{task.fields[symbol]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[position]}", style="cyan"),
        TextColumn("{task.fields[rates]}"),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=1.0, symbol="", position="", rates="")
        meter = TickRateMeter()
        while True:
            state = replay.state
            rate = meter.measure(replay.count)
            bar.update(
                task,
                completed=_share(state),
                symbol=_SYMBOLS[state.mode],
                position=_position(state),
                rates=f"{format_speed_factor(state.speed)}, {rate:,.0f} ticks/s",
            )
            bar.refresh()
            await asyncio.sleep(_REFRESH_S)


class TickRateMeter:
    """Measures ticks per second, over about the last second."""

    def __init__(self) -> None:
        self._since_s = time.monotonic()
        self._count = 0
        self._rate = 0.0

    def measure(self, count: int) -> float:
        """Return the rate; `count` is the number of all ticks so far."""
        elapsed_s = time.monotonic() - self._since_s
        if elapsed_s >= 1:
            self._rate = (count - self._count) / elapsed_s
            self._since_s, self._count = time.monotonic(), count
        return self._rate


def _position(state: ReplayState) -> str:
    """Format the position to the millisecond."""
    return state.position.rfc3339()[:23].rstrip("Z") + "Z"


def _share(state: ReplayState) -> float:
    """Return the share of the replay that has been played, from 0 to 1."""
    span = state.last - state.first
    return (state.position - state.first) / span if span else 1.0


def format_speed_factor(speed: float) -> str:
    """Format a speed for display."""
    return "max" if speed == MAX_SPEED else f"{format_speed(speed)}×"


# -- keys


class _KeyHandler:
    """Executes the commands of keys."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    def press(self, key: str) -> None:
        """Handle a key; keys without a meaning are ignored."""
        if key == "q":
            self._replay.stop()
        elif len(self._tasks) < _KEYS_WAITING_MAX:
            task = asyncio.get_running_loop().create_task(self._execute(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _execute(self, key: str) -> None:
        # One key after the other, because a key's meaning depends on the effect of the one before.
        async with self._lock:
            command = command_for(key, self._replay.state)
            if command is not None:
                with suppress(ReplayFailed):  # The replay may have ended.
                    await self._replay.execute(command)


def command_for(key: str, state: ReplayState) -> ControlCommand | None:
    """Return the command for a key in the given state of the replay, or None."""
    match key:
        case " " if state.mode is ReplayMode.PLAYING:
            return PauseCommand(id="key")
        case " ":
            return ResumeCommand(id="key")
        case "left" | "right":
            step = _seek_ns(state)
            position = state.position + (step if key == "right" else -step)
            return SeekCommand(id="key", position=min(max(position, state.first), state.last))
        case "+" | "=" | "-":
            speed = (
                max((each for each in _SPEEDS if each < state.speed), default=state.speed)
                if key == "-"
                else min((each for each in _SPEEDS if each > state.speed), default=state.speed)
            )
            return SpeedCommand(id="key", speed=format_speed(speed))
        case "s":
            return StepCommand(id="key")
    return None


def _seek_ns(state: ReplayState) -> int:
    span = state.last - state.first
    if state.speed == MAX_SPEED:
        return span // 20
    return min(span, round(_SEEK_S * state.speed * NS_PER_SECOND))
