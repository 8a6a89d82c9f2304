"""Private replays: one of the server's tapes, played to one program over a separate connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tickcast.client.connecting import ServerAddress, dial, next_frame, words_of
from tickcast.client.notices import Event
from tickcast.client.requests import PendingRequests
from tickcast.client.stamps import tick_in
from tickcast.client.state import (
    TICK_TYPES,
    Notice,
    Refused,
    messages_in,
    reading,
    subprotocol_of,
    to_message,
)
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import ConnectionFailed
from tickcast.wire.playback import MAX_SPEED, ReplayMode, ReplayState, check_speed, format_speed
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

_ID: Final = 1
"""The id of the replay, which is the only one on its connection."""


class ReplayCut(ConnectionFailed):
    """The connection of a private replay was cut, and the server has discarded the replay.

    The client does not reconnect. Start another replay with the time of the last tick as `start`.
    The ticks of exactly that time are then delivered again.
    """


class PrivateReplay:
    """A tape played to this program alone: an asynchronous iterator of its ticks.

    Ticks have the times and numbers of the recording. The replay waits for a slow reader, so no
    ticks are merged or skipped. Iterating raises `ReplayCut` if the connection was cut, and
    `Refused` if the tape turns out to be damaged. `Stream.replay` starts one.

    >>> from clients import connect
    >>> async def main():
    ...     async with connect(URL) as stream:
    ...         replay = await stream.replay("es-2013-09-01", trades=["ES"])
    ...         await replay.pause()
    ...         await replay.seek("2013-09-01T17:01:00Z")
    ...         await replay.speed("max")
    ...         await replay.resume()
    ...         return await anext(replay)
    >>> asyncio.run(main()).time.rfc3339()
    '2013-09-01T17:01:00.083Z'
    """

    def __init__(
        self, address: ServerAddress, socket: ClientConnection, encoding: Encoding
    ) -> None:
        self._address = address
        self._socket = socket
        self._encoding = encoding
        self._conversation = PendingRequests()
        self._queue = self._conversation.queue
        self._state: ReplayState | None = None
        self._steering = asyncio.Lock()
        self._drops = False
        self._reader = asyncio.create_task(self._receive(), name="private replay")

    @classmethod
    async def begin(
        cls,
        address: ServerAddress,
        encoding: Encoding,
        tape: str,
        channels: Mapping[str, Sequence[str]],
        *,
        start: datetime | str | int | None,
        end: datetime | str | int | None,
        speed: float | str,
    ) -> PrivateReplay:
        """Connect and start the replay; the arguments and errors are those of `Stream.replay`."""
        places = {"start": start, "end": end}
        part = {name: _ns(place) for name, place in places.items() if place is not None}
        named = {channel: symbols for channel, symbols in channels.items() if symbols}
        fields = {"tape": tape, **named, **part, "speed": _speed(speed)}
        replay = cls(address, await dial(address, subprotocol_of(encoding)), encoding)
        try:
            await replay._ask("replay", fields)
        except BaseException:
            await replay.close()
            raise
        return replay

    @property
    def state(self) -> ReplayState:
        """The state that the server last reported: at the start, the end, or after a command."""
        assert self._state is not None
        return self._state

    @property
    def ended(self) -> bool:
        """Whether the replay is over; unread ticks can still be read."""
        return self._queue.ended is not None

    # -- steering

    async def pause(self) -> ReplayState:
        """Pause the replay. Ticks sent before the pause can still be read.

        Like the other four commands, this returns the resulting state. Its mode is `ended` if the
        replay had ended meanwhile.

        Raises:
            Refused: the server refused the command.
            ConnectionFailed: the replay ended earlier, or the server did not answer.
        """
        return await self._ask("replay.pause")

    async def resume(self) -> ReplayState:
        """Resume the replay; returns and raises as `pause` does."""
        return await self._ask("replay.resume")

    async def seek(self, position: datetime | str | int) -> ReplayState:
        """Move the replay forward or back to another time, dropping unread ticks.

        Args:
            position: a time in the recording, in the formats of `start` in `Stream.subscribe`.

        Raises:
            ValueError: `position` is not a valid time. The other errors are those of `pause`.
        """
        return await self._ask("replay.seek", {"position": _ns(position)}, drops=True)

    async def speed(self, speed: float | str) -> ReplayState:
        """Change the speed, as in `Stream.replay`; returns and raises as `pause` does."""
        return await self._ask("replay.speed", {"speed": _speed(speed)})

    async def stop(self) -> ReplayState:
        """Stop the replay, dropping unread ticks. Does nothing to a replay that has ended."""
        if not self.ended:
            with suppress(ConnectionFailed):
                await self._ask("replay.stop", drops=True)
        await self.close()
        return self.state

    async def close(self) -> None:
        """Close the connection, which ends the replay and any iteration over it."""
        self._reader.cancel()
        await asyncio.wait([self._reader])
        self._conversation.end(StopAsyncIteration())
        await self._socket.close()

    # -- reading

    def __aiter__(self) -> PrivateReplay:
        return self

    async def __anext__(self) -> Tick:
        tick = await self._queue.get()
        assert not isinstance(tick, Event)
        return tick

    async def read(self, most: int = 1000) -> list[Tick]:
        """Return unread ticks, as `Stream.read` does; an empty list once the replay has ended."""
        try:
            ticks = await self._queue.get_ticks(most)
        except StopAsyncIteration:
            return []
        assert not isinstance(ticks, Event)
        return ticks

    # -- the conversation

    async def _ask(
        self, action: str, fields: Mapping[str, Any] | None = None, *, drops: bool = False
    ) -> ReplayState:
        # One command at a time: all replies carry the same id.
        async with self._steering:
            if drops:
                self._drops = True
                self._queue.clear()
            message = {"action": action, "id": _ID, **(fields or {})}
            question = _ID, to_message(message, self._encoding)
            try:
                reply = await self._conversation.ask(self._socket, question)
            finally:
                self._drops = False
        return ReplayState.from_fields(reply)

    async def _receive(self) -> None:
        try:
            while not self.ended:
                with reading():
                    await self._take(messages_in(await next_frame(self._socket)))
        except ConnectionClosed as cut:
            words = f"{self._address.url}: {words_of(cut)}"
            self._conversation.end(ReplayCut(f"{words}; a private replay does not come back"))
        except Exception as error:
            self._conversation.end(error)
        await self._socket.close()

    async def _take(self, messages: list[Notice]) -> None:
        ticks = [tick_in(each) for each in messages if each["T"] in TICK_TYPES]
        if ticks and not self._drops:
            await self._queue.put(ticks)
        for notice in messages:
            if notice.get("id") == _ID:
                self._take_notice(notice)

    def _take_notice(self, notice: Notice) -> None:
        if notice["T"] == "replay":
            self._state = ReplayState.from_fields(notice)
            self._drops = False
            self._conversation.answer(notice)
            if self._state.mode is ReplayMode.ENDED:
                self._conversation.end(StopAsyncIteration())
        elif not self._conversation.answer(notice):
            self._conversation.end(Refused(notice))


def _ns(place: datetime | str | int) -> int:
    return int(Time.from_wire(place))


def _speed(speed: float | str) -> int | float | str:
    return format_speed(MAX_SPEED if speed == "max" else check_speed(float(speed)))
