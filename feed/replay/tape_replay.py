"""A tape that is played to one client, with the replay's id added to each tick.

No I/O except reading the tape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from feed.fanout.encoded_ticks import FRAME_TICKS_MAX, EncodedFrames
from feed.replay.tape_cache import CachedTick
from tickcast.wire.actions import Id, ReplayCommand, SteerReplay
from tickcast.wire.encoding import Encoding, array_delimiters, build_frame, encode
from tickcast.wire.playback import Player, ReplayMode
from tickcast.wire.subscriptions import Subscription

# Bytes that one client gets in a turn, before the next client's turn.
WRITE_BYTES: Final = 64 * 1024


class TapeReplay:
    """A tape that is being played to one client."""

    def __init__(
        self,
        id_: Id,
        player: Player[CachedTick],
        encoding: Encoding,
        feed: str,
        subscriptions: frozenset[Subscription],
    ) -> None:
        # The client's name for the replay.
        self.id = id_
        # The feed of the tape, and what the replay plays of it.
        self.feed = feed
        self.subscriptions = subscriptions
        # True if the replay will send nothing more.
        self.is_over = False
        self._player = player
        self._encoding = encoding
        self._suffix = _tick_suffix(id_, encoding)

    @property
    def due_s(self) -> float | None:
        """When the next tick or the end is due; None unless the replay is playing."""
        return None if self.is_over else self._player.next_due_s

    @property
    def has_ended(self) -> bool:
        """Whether the replay has reached its end."""
        return self._player.mode is ReplayMode.ENDED

    def encode_due(self, now_s: float) -> EncodedFrames | None:
        """Encode due ticks, up to about `WRITE_BYTES`; return None if none are due."""
        frames: list[bytes] = []
        size = count = 0
        while size < WRITE_BYTES and (ticks := self._player.pop_due(now_s, FRAME_TICKS_MAX)):
            frames.append(self._frame(ticks))
            size += len(frames[-1])
            count += len(ticks)
        return EncodedFrames(b"".join(frames), len(frames), count) if frames else None

    def _frame(self, ticks: Sequence[CachedTick]) -> bytes:
        before, between, after = array_delimiters(len(ticks), self._encoding)
        if self._encoding is Encoding.JSON:
            elements = [tick.json or tick.encode(Encoding.JSON) for tick in ticks]
        else:
            elements = [tick.msgpack or tick.encode(Encoding.MSGPACK) for tick in ticks]
        body = (self._suffix + between).join(elements)
        return build_frame(b"".join((before, body, self._suffix, after)), self._encoding)

    def steer(self, action: SteerReplay, now_s: float) -> None:
        """Carry out a command. Raises InvalidTape."""
        match action.command:
            case ReplayCommand.PAUSE:
                self._player.pause(now_s)
            case ReplayCommand.RESUME:
                self._player.resume(now_s)
            case ReplayCommand.STOP:
                self.is_over = True
            case ReplayCommand.SEEK:
                assert action.position is not None
                self._player.seek(action.position, now_s)
            case ReplayCommand.SPEED:
                assert action.speed is not None
                self._player.set_speed(action.speed, now_s)

    def state(self, now_s: float) -> dict[str, Any]:
        """Build the state message for the client; a replay that has ended is then over."""
        self.is_over = self.is_over or self.has_ended
        state = self._player.state(now_s)
        if self.is_over:
            state = state._replace(mode=ReplayMode.ENDED)
        return {"T": "replay", "id": self.id, **state.to_fields()}


def _tick_suffix(id_: Id, encoding: Encoding) -> bytes:
    """The bytes that complete a tick: the field `rp` and, in JSON, the end of the object."""
    value = encode(id_, encoding)
    if encoding is Encoding.JSON:
        return b',"rp":' + value + b"}"
    return encode("rp", encoding) + value
