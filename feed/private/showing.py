"""One private replay: a tape played to one client, each tick marked with the replay's id. No I/O
but for the reading of the tape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from feed.blocks import Letter
from feed.encoding import Encoding, array_marks, encode
from feed.fields import Id
from feed.frames import build_frame
from feed.pieces import FRAME_TICKS_MAX
from feed.playback import Deck, Mode
from feed.private.reels import Cel
from feed.replay_actions import Steer, Verb
from feed.ticks import Subscription

WRITE_BYTES: Final = 64 * 1024
"""What a client gets at a time; then it is the next one's turn."""


class Showing:
    """A replay under way.

    Attributes:
        id: what its client calls it.
        feed, subscriptions: what of which feed it plays.
        over: True when nothing more will come.
    """

    def __init__(
        self,
        id_: Id,
        deck: Deck[Cel],
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
        """When there is something to do; None while nothing is, however long one waits."""
        return None if self.over else self._deck.due_s

    def play(self, now_s: float) -> Letter | None:
        """The next ticks that are due, as many as are sent at a time; None if none is."""
        frames: list[bytes] = []
        size = ticks = 0
        while size < WRITE_BYTES and (cels := self._deck.take(now_s, FRAME_TICKS_MAX)):
            frames.append(self._frame(cels))
            size += len(frames[-1])
            ticks += len(cels)
        return Letter(b"".join(frames), len(frames), ticks) if frames else None

    def _frame(self, cels: Sequence[Cel]) -> bytes:
        before, between, after = array_marks(len(cels), self._encoding)
        if self._encoding is Encoding.JSON:
            elements = [cel.json or cel.encode(Encoding.JSON) for cel in cels]
        else:
            elements = [cel.msgpack or cel.encode(Encoding.MSGPACK) for cel in cels]
        body = (self._mark + between).join(elements)
        return build_frame(b"".join((before, body, self._mark, after)), self._encoding)

    def steer(self, action: Steer, now_s: float) -> None:
        """Do what the client asks for.

        Raises:
            InvalidTape: the tape can't be read there.
        """
        match action.verb:
            case Verb.PAUSE:
                self._deck.pause(now_s)
            case Verb.RESUME:
                self._deck.resume(now_s)
            case Verb.STOP:
                self.over = True
            case Verb.SEEK:
                assert action.position is not None
                self._deck.seek(action.position, now_s)
            case Verb.SPEED:
                assert action.speed is not None
                self._deck.set_speed(action.speed, now_s)

    @property
    def has_ended(self) -> bool:
        """Whether all was played."""
        return self._deck.mode is Mode.ENDED

    def state(self, now_s: float) -> dict[str, Any]:
        """Where it stands, for its client; it is over when it has ended."""
        self.over = self.over or self.has_ended
        state = self._deck.state(now_s)
        if self.over:
            state = state._replace(mode=Mode.ENDED)
        return {"T": "replay", "id": self.id, **state.fields()}


def _mark(id_: Id, encoding: Encoding) -> bytes:
    """What completes a tick: the field `rp`, and in JSON the end of the object."""
    value = encode(id_, encoding)
    if encoding is Encoding.JSON:
        return b',"rp":' + value + b"}"
    return encode("rp", encoding) + value
