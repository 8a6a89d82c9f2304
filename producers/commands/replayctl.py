"""`tickcast replayctl`: controls the replay of a feed from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from producers.commands.replay_screen import words_of
from tickcast.broker.replays import steer
from tickcast.commands.options import config_option, feed_option, redis_option
from tickcast.commands.running import open_client, run
from tickcast.settings import Settings, load_settings
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.playback import STEPS_MAX, ReplayState, parse_speed, resolve_time
from tickcast.wire.times import Time

_ACTIONS: Final = ("pause", "resume", "seek", "speed", "step", "status")


# An unknown option may be a value, as in `seek -30s`.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("action", type=click.Choice(_ACTIONS), metavar="ACTION")
@click.argument("value", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the state as clients get it.")
@feed_option
@redis_option
@config_option
def replayctl(
    action: str,
    value: str | None,
    as_json: bool,
    feed: str,
    redis_url: str | None,
    config: Path | None,
) -> None:
    """Control the replay of a feed, and print its state.

    \b
    replayctl status
    replayctl pause                  and resume
    replayctl seek 2013-09-02T13:00:00Z
    replayctl seek +10m              relative to the current time; also -30s
    replayctl speed 50               or max
    replayctl step 3                 pause, and publish three ticks
    """
    settings = load_settings(config, redis_url=redis_url)
    command = _command(action, value)
    state = run(_steer(settings, feed, command))
    click.echo(encode(state.to_fields(), Encoding.JSON) if as_json else describe(state))


def _command(action: str, value: str | None) -> dict[str, Any]:
    """Return the message for a command."""
    try:
        match action, value:
            case "seek", str():
                resolve_time(value, Time(0))
                return {"do": "seek", "position": value}
            case "speed", str():
                parse_speed(value)
                return {"do": "speed", "speed": value}
            case "step", _:
                count = int(value or "1")
                if not 1 <= count <= STEPS_MAX:
                    raise ValueError(f"a step is 1 to {STEPS_MAX} ticks")
                return {"do": "step", "ticks": count}
            case (("seek" | "speed"), None):
                raise click.UsageError(f"{action} takes a value")
            case _, None:
                return {"do": action}
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=action) from None
    raise click.UsageError(f"{action} takes no value")


async def _steer(settings: Settings, feed: str, command: dict[str, Any]) -> ReplayState:
    async with open_client(settings) as client:
        return await steer(client, feed, command)


def describe(state: ReplayState) -> str:
    """Describe a state in one line."""
    return (
        f"{state.mode.value} at {state.position.rfc3339()}, {words_of(state.speed)},"
        f" of {state.first.rfc3339()} to {state.last.rfc3339()}"
    )
