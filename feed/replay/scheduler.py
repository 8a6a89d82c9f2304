"""Play private replays: read and encode due ticks in a thread, send them from the event loop."""

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
from feed.replay.tape_cache import CachedTick, TapeCache, TapeListing, TapeSource
from feed.replay.tape_replay import TapeReplay
from tickcast.tapes import Tape, TapeLibrary
from tickcast.wire import messages
from tickcast.wire.actions import Id, PlayTape, ReplayCommand, SteerReplay
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import Fault, InvalidAction, InvalidTape, TapeNotFound
from tickcast.wire.playback import Player
from tickcast.wire.subscriptions import Coverage, Subscription

# The minimum time between two turns. Ticks that become due meanwhile are sent together.
PAUSE_S: Final = 0.005
# The longest wait if nothing is due.
_WAIT_MAX_S: Final = 60.0
# Results kept for a client that does not read. Beyond that, they fill its outbox.
_UNSENT_MAX: Final = 20
_UNKNOWN_ID: Final = (Fault.INVALID_SYNTAX, "no replay with this id is playing")

# Reduces subscriptions of a feed to what a client may see.
Narrow = Callable[[str, Iterable[Subscription]], Iterable[Subscription]]

logger = logging.getLogger("tickcast.private")


class ReplayClient:
    """A client that plays private replays.

    Args:
        send: sends frames of ticks, given the number of frames and the number of ticks.
    """

    __slots__ = ("encoding", "outbox", "replays", "send", "unsent")

    def __init__(
        self, outbox: Outbox, encoding: Encoding, send: Callable[[bytes, int, int], None]
    ) -> None:
        self.outbox = outbox
        self.encoding = encoding
        self.send = send
        self.replays: dict[Id, TapeReplay] = {}
        # Results that are ready but not sent yet, because the client does not read.
        self.unsent: list[EncodedFrames | dict[str, Any]] = []

    @property
    def is_ready(self) -> bool:
        """Whether the client reads and has nothing unsent, so that more may be prepared."""
        return self.outbox.write is not None and not self.unsent

    def send_results(self) -> None:
        """Send results while the client reads.

        If a client keeps sending requests without reading, the replies fill its outbox, as they do
        for other requests.
        """
        while self.unsent and not self.outbox.closed:
            if self.outbox.write is None and len(self.unsent) <= _UNSENT_MAX:
                return
            result = self.unsent.pop(0)
            if isinstance(result, EncodedFrames):
                self.send(*result)
            else:
                self.outbox.push(message_frame([result], self.encoding))


class _Turn(NamedTuple):
    """One replay's turn: an optional command, and the results to send."""

    client: ReplayClient
    replay: TapeReplay
    command: SteerReplay | None
    results: list[EncodedFrames | dict[str, Any]]


class ReplayScheduler:
    """All private replays of a server.

    Replays are played in consecutive turns. Reading and encoding run in a thread, so that live
    ticks are not delayed.

    Args:
        per_client_max, replays_max: the maximum number of replays, per client and in total.
    """

    def __init__(self, library: TapeLibrary | None, per_client_max: int, replays_max: int) -> None:
        self._cache = TapeCache(library) if library is not None else None
        self._per_client_max = per_client_max
        self._replays_max = replays_max
        # The cache's tapes and its frames may each be used by one thread at a time.
        self._opening = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._clients: set[ReplayClient] = set()
        self._commands: list[_Turn] = []
        self._has_work = asyncio.Event()

    def __len__(self) -> int:
        """Number of replays."""
        return sum(len(client.replays) for client in self._clients)

    # -- requests from clients

    async def list_tapes(self) -> list[TapeListing]:
        """List all finished tapes that can be read, by name. Raises TapeNotFound."""
        if self._cache is None:
            raise TapeNotFound("this server has no tapes")
        async with self._opening:
            return await asyncio.to_thread(self._cache.list_tapes)

    async def play(self, client: ReplayClient, action: PlayTape, narrow: Narrow) -> None:
        """Begin a replay. Raises InvalidAction."""
        if self._cache is None:
            raise InvalidAction(Fault.INVALID_ACTION, "this server has no tapes")
        self._check_limits(client, action)
        try:
            async with self._opening:
                tape = await asyncio.to_thread(self._cache.open_tape, action.tape)
            allowed = frozenset(narrow(tape.manifest.feed, action.subscriptions))
            if not allowed:
                raise InvalidAction(
                    Fault.INSUFFICIENT_SUBSCRIPTION,
                    f"the credentials do not cover any stream of {action.tape}",
                )
            async with self._reading:
                player = await asyncio.to_thread(_open_player, self._cache, tape, action, allowed)
        except TapeNotFound as error:
            raise InvalidAction(Fault.TAPE_NOT_FOUND, str(error)) from None
        except InvalidTape as error:
            logger.warning("can't play %s: %s", action.tape, error)
            raise InvalidAction(Fault.TAPE_NOT_FOUND, f"{action.tape} can't be read") from None
        except ValueError as error:
            raise InvalidAction(Fault.INVALID_SYNTAX, str(error)) from None
        if client.outbox.closed:
            return
        # Again: other replays may have begun meanwhile.
        self._check_limits(client, action)
        replay = TapeReplay(action.id, player, client.encoding, tape.manifest.feed, allowed)
        self._clients.add(client)
        client.replays[action.id] = replay
        client.unsent.append(replay.state(time.monotonic()))
        client.send_results()
        self._has_work.set()

    def _check_limits(self, client: ReplayClient, action: PlayTape) -> None:
        if action.id in client.replays:
            raise InvalidAction(Fault.INVALID_SYNTAX, "a replay with this id is already playing")
        if len(client.replays) >= self._per_client_max:
            raise InvalidAction(
                Fault.SYMBOL_LIMIT, f"at most {self._per_client_max} replays at a time are allowed"
            )
        if len(self) >= self._replays_max:
            raise InvalidAction(
                Fault.RATE_LIMITED, "the server has reached its limit of private replays"
            )

    def steer(self, client: ReplayClient, action: SteerReplay) -> None:
        """Steer a replay; the reply is sent when the command takes effect. Raises InvalidAction."""
        replay = client.replays.get(action.id)
        if replay is None:
            raise InvalidAction(*_UNKNOWN_ID)
        self._commands.append(_Turn(client, replay, action, []))
        self._has_work.set()

    def stop_uncovered(self, client: ReplayClient, narrow: Narrow) -> None:
        """Stop the client's replays of streams that it may no longer see."""
        for replay in client.replays.values():
            if frozenset(narrow(replay.feed, replay.subscriptions)) != replay.subscriptions:
                self.steer(client, SteerReplay(replay.id, ReplayCommand.STOP))

    def drain(self, client: ReplayClient) -> None:
        """Resume sending to a client that reads again."""
        client.send_results()
        self._has_work.set()

    def forget(self, client: ReplayClient) -> None:
        """End all replays of a client that has disconnected."""
        self._clients.discard(client)
        client.replays.clear()
        client.unsent.clear()
        self._has_work.set()

    # -- turns

    async def play_forever(self) -> None:
        """Play until cancelled."""
        while True:
            await self._wait()
            turns, self._commands = self._commands, []
            turns += [_Turn(client, replay, None, []) for client, replay in self._ready_replays()]
            async with self._reading:
                await asyncio.to_thread(_take_turns, turns)
                if not self._clients and self._cache is not None:
                    self._cache.clear()  # Safe here: no thread is reading while this lock is held.
            for turn in turns:
                try:
                    self._finish(turn)
                except Exception:
                    logger.exception("a bug in a private replay, whose client is disconnected")
                    self.forget(turn.client)
                    turn.client.outbox.fail()
            await asyncio.sleep(PAUSE_S)

    def _ready_replays(self) -> list[tuple[ReplayClient, TapeReplay]]:
        return [
            (client, replay)
            for client in self._clients
            if client.is_ready
            for replay in client.replays.values()
        ]

    async def _wait(self) -> None:
        """Wait until a tick is due or a request arrives."""
        due = [replay.due_s for _, replay in self._ready_replays()]
        first_s = min((each for each in due if each is not None), default=math.inf)
        wait_s = max(0.0, min(first_s - time.monotonic(), _WAIT_MAX_S))
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._has_work.wait()
        self._has_work.clear()

    def _finish(self, turn: _Turn) -> None:
        client, replay = turn.client, turn.replay
        if replay.is_over and client.replays.get(replay.id) is replay:
            del client.replays[replay.id]
            if not client.replays:
                self._clients.discard(client)
        if not client.outbox.closed:
            client.unsent += turn.results
            client.send_results()


def _open_player(
    cache: TapeCache, tape: Tape, action: PlayTape, allowed: frozenset[Subscription]
) -> Player[CachedTick]:
    """Find the streams and read the first frame; raises the errors of `TapeSource` and `Player`."""
    source = TapeSource(cache, tape, Coverage(allowed))
    return Player(source, time.monotonic(), speed=action.speed, start=action.start, end=action.end)


def _take_turns(turns: Iterable[_Turn]) -> None:
    """Carry out commands and prepare the ticks that are due."""
    for turn in turns:
        replay = turn.replay
        try:
            _take_turn(turn)
        except InvalidTape as error:
            logger.warning("a private replay ends: %s", error)
            replay.is_over = True
            turn.results.extend(
                messages.error(Fault.INTERNAL_ERROR, "the tape is damaged", replay.id)
            )
            turn.results.append(replay.state(time.monotonic()))
        except Exception:
            # An error in one client's replay must not affect the others.
            logger.exception("a bug in a private replay")
            replay.is_over = True
            turn.results.extend(messages.error(Fault.INTERNAL_ERROR, "", replay.id))


def _take_turn(turn: _Turn) -> None:
    replay, now_s = turn.replay, time.monotonic()
    if turn.command is not None and replay.is_over:
        # The replay was playing when the command came, but an earlier turn has ended it.
        turn.results.extend(messages.error(*_UNKNOWN_ID, replay.id))
    elif turn.command is not None:
        replay.steer(turn.command, now_s)
        turn.results.append(replay.state(now_s))
    elif (due_s := replay.due_s) is not None and due_s <= now_s:
        frames = replay.encode_due(now_s)
        if frames is not None:
            turn.results.append(frames)
        if replay.has_ended:
            turn.results.append(replay.state(now_s))
