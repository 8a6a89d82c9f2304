"""Commands to a replay, as JSON messages: read and held to their bounds here."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from feed.errors import ReplayFailed
from feed.playback import STEPS_MAX

_MESSAGE_BYTES: Final = 1024
_Id = Annotated[str, Meta(min_length=1, max_length=64)]


class _Command(Struct, tag_field="do", tag=str.lower, forbid_unknown_fields=True, kw_only=True):
    """What all have. `id` is echoed in the reply."""

    id: _Id


class Pause(_Command):
    """Stand still."""


class Resume(_Command):
    """Go on."""


class Status(_Command):
    """Say where it stands."""


class Seek(_Command):
    """Go to a time of the recording, or an offset from where it stands: `+10m`, `-30s`."""

    position: Annotated[str, Meta(max_length=64)] | int


class Speed(_Command):
    """Go on at another speed: a number, or `max`."""

    speed: float | Annotated[str, Meta(max_length=32)]


class Step(_Command):
    """Pause, and publish so many ticks."""

    ticks: Annotated[int, Meta(ge=1, le=STEPS_MAX)] = 1


Command = Pause | Resume | Status | Seek | Speed | Step
_DECODER: Final[msgspec.json.Decoder[Command]] = msgspec.json.Decoder(Command)


def parse_command(data: bytes) -> Command:
    """Read a command.

    Raises:
        ReplayFailed: it is none.
    """
    if len(data) > _MESSAGE_BYTES:
        raise ReplayFailed(f"a command has at most {_MESSAGE_BYTES} bytes")
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ReplayFailed(f"no command: {error}") from None
