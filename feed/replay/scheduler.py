"""Plays private replays: reads and encodes due ticks in a thread; the event loop sends them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from feed.fanout.encoded_ticks import EncodedFrames, message_frame
from feed.fanout.outbox import Outbox
from feed.replay.private_replay import ActiveReplay
from feed.replay.tape_cache import TapeCache, TapeListing, TapeSource
from tickcast.tapes import Tape, TapeLibrary
from tickcast.wire import messages as protocol
from tickcast.wire.actions import Id, PlayTape, ReplayCommand, SteerReplay
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import Fault, InvalidAction, InvalidTape, TapeNotFound
from tickcast.wire.playback import Player
from tickcast.wire.subscriptions import Coverage, Subscription

PAUSE_S: Final = 0.005
"""Minimum time between two turns; ticks that become due meanwhile are sent together."""
_LOOK_S: Final = 60.0
_WAITING_MAX: Final = 20
_UNKNOWN: Final = (Fault.INVALID_SYNTAX, "no replay with this id plays")

Narrow = Callable[[str, Iterable[Subscription]], Iterable[Subscription]]
"""Reduces subscriptions of a feed to what a client may see."""

logger = logging.getLogger("tickcast.private")


class ReplayClient:
    """A client that plays private replays.

    Args:
        send: takes frames of ticks, the number of frames and the number of ticks.
    """

    __slots__ = ("encoding", "outbox", "send", "showings", "waiting")

    def __init__(
        self, outbox: Outbox, encoding: Encoding, send: Callable[[bytes, int, int], None]
    ) -> None:
        self.outbox = outbox
        self.encoding = encoding
        self.send = send
        self.showings: dict[Id, ActiveReplay] = {}
        self.waiting: list[EncodedFrames | dict[str, Any]] = []
        """Results that are ready but not sent yet, because the client does not read."""

    @property
    def reads(self) -> bool:
        """Whether the client reads and has nothing waiting, so that more may be prepared."""
        return self.outbox.write is not None and not self.waiting

    def deliver(self) -> None:
        """Send waiting results while the client takes them.

        If a client keeps sending requests without reading, the replies fill its outbox, as they do
        for other requests.
        """
        while self.waiting and not self.outbox.closed:
            if self.outbox.write is None and len(self.waiting) <= _WAITING_MAX:
                return
            item = self.waiting.pop(0)
            if isinstance(item, EncodedFrames):
                self.send(*item)
            else:
                self.outbox.push(message_frame([item], self.encoding))


class _Turn(NamedTuple):
    """One replay's turn: an optional command, and the results to send."""

    viewer: ReplayClient
    showing: ActiveReplay
    steer: SteerReplay | None
    outcome: list[EncodedFrames | dict[str, Any]]


class ReplayScheduler:
    """All private replays of a server.

    Replays are played in consecutive turns. Reading and encoding run in a thread, so that live
    ticks are not delayed.

    Args:
        library: the tapes; None if the server has none.
        per_client, in_all: maximum number of replays, per client and in total.
    """

    def __init__(self, library: TapeLibrary | None, per_client: int, in_all: int) -> None:
        self._reels = TapeCache(library) if library is not None else None
        self._per_client = per_client
        self._in_all = in_all
        self._opening = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._viewers: set[ReplayClient] = set()
        self._asked: list[_Turn] = []
        self._news = asyncio.Event()

    def __len__(self) -> int:
        """Number of replays."""
        return sum(len(viewer.showings) for viewer in self._viewers)

    # -- requests from clients

    async def listings(self) -> list[TapeListing]:
        """List all finished tapes that can be read, by name.

        Raises:
            TapeNotFound: the server has no tapes.
        """
        if self._reels is None:
            raise TapeNotFound("this server has no tapes")
        async with self._opening:
            return await asyncio.to_thread(self._reels.listings)

    async def play(self, viewer: ReplayClient, play: PlayTape, narrow: Narrow) -> None:
        """Begin a replay.

        Raises:
            InvalidAction: the replay can't begin; nothing has changed.
        """
        reels = self._reels
        if reels is None:
            raise InvalidAction(Fault.INVALID_ACTION, "this server has no tapes")
        self._check_room(viewer, play)
        try:
            async with self._opening:
                tape = await asyncio.to_thread(reels.tape, play.tape)
            allowed = frozenset(narrow(tape.manifest.feed, play.subscriptions))
            if not allowed:
                raise InvalidAction(Fault.INSUFFICIENT_SUBSCRIPTION, f"of {play.tape}")
            async with self._reading:
                showing = await asyncio.to_thread(_begin, reels, tape, play, allowed, viewer)
        except TapeNotFound as error:
            raise InvalidAction(Fault.TAPE_NOT_FOUND, str(error)) from None
        except InvalidTape as error:
            logger.warning("can't play %s: %s", play.tape, error)
            raise InvalidAction(Fault.TAPE_NOT_FOUND, f"{play.tape} can't be read") from None
        except ValueError as error:
            raise InvalidAction(Fault.INVALID_SYNTAX, str(error)) from None
        if viewer.outbox.closed:
            return
        self._check_room(viewer, play)
        self._viewers.add(viewer)
        viewer.showings[play.id] = showing
        viewer.waiting.append(showing.state(time.monotonic()))
        viewer.deliver()
        self._news.set()

    def _check_room(self, viewer: ReplayClient, play: PlayTape) -> None:
        if play.id in viewer.showings:
            raise InvalidAction(Fault.INVALID_SYNTAX, "a replay with this id plays already")
        if len(viewer.showings) >= self._per_client:
            raise InvalidAction(
                Fault.SYMBOL_LIMIT, f"at most {self._per_client} replays at a time are allowed"
            )
        if len(self) >= self._in_all:
            raise InvalidAction(Fault.RATE_LIMITED, "the server plays as many tapes as it can")

    def steer(self, viewer: ReplayClient, steer: SteerReplay) -> None:
        """Steer a replay; the reply is sent when the command takes effect.

        Raises:
            InvalidAction: there is no replay with this id.
        """
        showing = viewer.showings.get(steer.id)
        if showing is None:
            raise InvalidAction(*_UNKNOWN)
        self._asked.append(_Turn(viewer, showing, steer, []))
        self._news.set()

    def stop_uncovered(self, viewer: ReplayClient, narrow: Narrow) -> None:
        """Stop the client's replays of streams that it may no longer see."""
        for showing in viewer.showings.values():
            if frozenset(narrow(showing.feed, showing.subscriptions)) != showing.subscriptions:
                self.steer(viewer, SteerReplay(showing.id, ReplayCommand.STOP))

    def drain(self, viewer: ReplayClient) -> None:
        """Resume sending to a client that reads again."""
        viewer.deliver()
        self._news.set()

    def forget(self, viewer: ReplayClient) -> None:
        """End all replays of a client that has disconnected."""
        self._viewers.discard(viewer)
        viewer.showings.clear()
        viewer.waiting.clear()
        self._news.set()

    # -- turns

    async def run(self) -> None:
        """Play until cancelled."""
        while True:
            await self._wait()
            turns, self._asked = self._asked, []
            turns += [
                _Turn(viewer, showing, None, [])
                for viewer in self._viewers
                if viewer.reads
                for showing in viewer.showings.values()
            ]
            async with self._reading:
                await asyncio.to_thread(_work_off, turns)
                if not self._viewers and self._reels is not None:
                    self._reels.clear()  # Safe here: no thread is reading while this lock is held.
            for turn in turns:
                try:
                    self._finish(turn)
                except Exception:
                    logger.exception("a bug in a private replay, whose client is ended")
                    self.forget(turn.viewer)
                    turn.viewer.outbox.fail()
            await asyncio.sleep(PAUSE_S)

    async def _wait(self) -> None:
        """Wait until a tick is due or a request arrives."""
        due = [
            showing.due_s
            for viewer in self._viewers
            if viewer.reads
            for showing in viewer.showings.values()
        ]
        wait_s = (
            min((each for each in due if each is not None), default=math.inf) - time.monotonic()
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(wait_s, _LOOK_S))):
                await self._news.wait()
        self._news.clear()

    def _finish(self, turn: _Turn) -> None:
        viewer, showing = turn.viewer, turn.showing
        if showing.over and viewer.showings.get(showing.id) is showing:
            del viewer.showings[showing.id]
            if not viewer.showings:
                self._viewers.discard(viewer)
        if not viewer.outbox.closed:
            viewer.waiting += turn.outcome
            viewer.deliver()


def _begin(
    reels: TapeCache,
    tape: Tape,
    play: PlayTape,
    allowed: frozenset[Subscription],
    viewer: ReplayClient,
) -> ActiveReplay:
    """Start reading a tape; raises InvalidTape and the errors of `TapeSource` and `Player`."""
    reel = TapeSource(reels, tape, Coverage(allowed))
    deck = Player(reel, time.monotonic(), speed=play.speed, start=play.start, end=play.end)
    return ActiveReplay(play.id, deck, viewer.encoding, tape.manifest.feed, allowed)


def _work_off(turns: Iterable[_Turn]) -> None:
    """Carry out commands and prepare the ticks that are due."""
    for turn in turns:
        try:
            _take_turn(turn)
        except InvalidTape as error:
            logger.warning("a private replay ends: %s", error)
            turn.showing.over = True
            turn.outcome.extend(
                [
                    *protocol.error(Fault.INTERNAL_ERROR, "the tape is damaged", turn.showing.id),
                    turn.showing.state(time.monotonic()),
                ]
            )
        except Exception:
            # An error in one client's replay must not affect the others.
            logger.exception("a bug in a private replay")
            turn.showing.over = True
            turn.outcome.extend(protocol.error(Fault.INTERNAL_ERROR, "", turn.showing.id))


def _take_turn(turn: _Turn) -> None:
    showing, now_s = turn.showing, time.monotonic()
    if turn.steer is not None and showing.over:
        # The replay was playing when the command came, but an earlier turn has ended it.
        turn.outcome.extend(protocol.error(*_UNKNOWN, showing.id))
    elif turn.steer is not None:
        showing.steer(turn.steer, now_s)
        turn.outcome.append(showing.state(now_s))
    elif (due_s := showing.due_s) is not None and due_s <= now_s:
        letter = showing.play(now_s)
        if letter is not None:
            turn.outcome.append(letter)
        if showing.has_ended:
            turn.outcome.append(showing.state(now_s))
