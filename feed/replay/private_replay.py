"""One private replay: a tape played to one client, with the replay's id added to each tick.

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

WRITE_BYTES: Final = 64 * 1024
"""Bytes that one client gets in a turn, before the next client's turn."""


class ActiveReplay:
    """A running private replay.

    Attributes:
        id: the client's name for the replay.
        feed, subscriptions: the feed of the tape, and what the replay plays of it.
        over: True if the replay will send nothing more.
    """

    def __init__(
        self,
        id_: Id,
        deck: Player[CachedTick],
        encoding: Encoding,
        feed: str,
        subscriptions: frozenset[Subscription],
    ) -> None:
        self.id = id_
        self.feed = feed
        self.subscriptions = subscriptions
        self.over = False
        self._deck = deck
        self._encoding = encoding
        self._mark = _mark(id_, encoding)

    @property
    def due_s(self) -> float | None:
        """When the next tick or the end is due; None unless the replay is playing."""
        return None if self.over else self._deck.next_due_s

    def play(self, now_s: float) -> EncodedFrames | None:
        """Encode due ticks, up to about `WRITE_BYTES`; return None if none are due."""
        frames: list[bytes] = []
        size = ticks = 0
        while size < WRITE_BYTES and (cels := self._deck.pop_due(now_s, FRAME_TICKS_MAX)):
            frames.append(self._frame(cels))
            size += len(frames[-1])
            ticks += len(cels)
        return EncodedFrames(b"".join(frames), len(frames), ticks) if frames else None

    def _frame(self, cels: Sequence[CachedTick]) -> bytes:
        before, between, after = array_delimiters(len(cels), self._encoding)
        if self._encoding is Encoding.JSON:
            elements = [cel.json or cel.encode(Encoding.JSON) for cel in cels]
        else:
            elements = [cel.msgpack or cel.encode(Encoding.MSGPACK) for cel in cels]
        body = (self._mark + between).join(elements)
        return build_frame(b"".join((before, body, self._mark, after)), self._encoding)

    def steer(self, action: SteerReplay, now_s: float) -> None:
        """Carry out a command.

        Raises:
            InvalidTape: the tape can't be read at the new position.
        """
        match action.command:
            case ReplayCommand.PAUSE:
                self._deck.pause(now_s)
            case ReplayCommand.RESUME:
                self._deck.resume(now_s)
            case ReplayCommand.STOP:
                self.over = True
            case ReplayCommand.SEEK:
                assert action.position is not None
                self._deck.seek(action.position, now_s)
            case ReplayCommand.SPEED:
                assert action.speed is not None
                self._deck.set_speed(action.speed, now_s)

    @property
    def has_ended(self) -> bool:
        """Whether the replay has reached its end."""
        return self._deck.mode is ReplayMode.ENDED

    def state(self, now_s: float) -> dict[str, Any]:
        """Build the state message for the client; a replay that has ended is then over."""
        self.over = self.over or self.has_ended
        state = self._deck.state(now_s)
        if self.over:
            state = state._replace(mode=ReplayMode.ENDED)
        return {"T": "replay", "id": self.id, **state.to_fields()}


def _mark(id_: Id, encoding: Encoding) -> bytes:
    """The bytes that complete a tick: the field `rp` and, in JSON, the end of the object."""
    value = encode(id_, encoding)
    if encoding is Encoding.JSON:
        return b',"rp":' + value + b"}"
    return encode("rp", encoding) + value
