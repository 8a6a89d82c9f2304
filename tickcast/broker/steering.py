"""Parses and validates the JSON commands that control a replay."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from tickcast.wire.errors import ReplayFailed
from tickcast.wire.playback import STEPS_MAX

_MESSAGE_BYTES: Final = 1024
_Id = Annotated[str, Meta(min_length=1, max_length=64)]


def _tag(name: str) -> str:
    return name.removesuffix("Command").lower()


class _Command(Struct, tag_field="do", tag=_tag, forbid_unknown_fields=True, kw_only=True):
    """The base of all commands. The reply repeats `id`."""

    id: _Id


class PauseCommand(_Command):
    """Pause the replay."""


class ResumeCommand(_Command):
    """Resume the replay."""


class StatusCommand(_Command):
    """Report the state of the replay."""


class SeekCommand(_Command):
    """Go to a time in the recording, or by an offset from the current one: `+10m`, `-30s`."""

    position: Annotated[str, Meta(max_length=64)] | int


class SpeedCommand(_Command):
    """Change the speed to a number or `max`."""

    speed: float | Annotated[str, Meta(max_length=32)]


class StepCommand(_Command):
    """Pause, and publish a number of ticks."""

    ticks: Annotated[int, Meta(ge=1, le=STEPS_MAX)] = 1


Command = PauseCommand | ResumeCommand | StatusCommand | SeekCommand | SpeedCommand | StepCommand
_DECODER: Final[msgspec.json.Decoder[Command]] = msgspec.json.Decoder(Command)


def parse_command(data: bytes) -> Command:
    """Parse a command.

    Raises:
        ReplayFailed: the message is not a valid command.
    """
    if len(data) > _MESSAGE_BYTES:
        raise ReplayFailed(f"a command has at most {_MESSAGE_BYTES} bytes")
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ReplayFailed(f"no command: {error}") from None
