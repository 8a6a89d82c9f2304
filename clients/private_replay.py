"""A private replay: a tape of the server, played to one program over a connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from clients.conversation import Conversation
from clients.dialing import Address, dial, next_frame, words_of
from clients.notices import Event
from clients.stamps import tick_in
from clients.state import (
    TICK_TYPES,
    Notice,
    Refused,
    messages_in,
    reading,
    subprotocol_of,
    to_message,
)
from feed.encoding import Encoding
from feed.errors import ConnectionFailed
from feed.playback import MAX, Mode, State, check_speed, show_speed
from feed.ticks import Tick
from feed.times import Time

_ID: Final = 1
"""What the replay is called; it is the only one on its connection."""


class ReplayCut(ConnectionFailed):
    """The connection of a private replay was cut. The server has forgotten the replay.

    It does not come back by itself. Ask for it again, with the time of the last tick as `start`:
    ticks of that very time then come once more.
    """


class PrivateReplay:
    """A tape that plays to this program alone: an asynchronous iterator of its ticks.

    Their times and numbers are those of the recording. It waits for who reads it: nothing is merged
    or skipped. Iterating raises `ReplayCut` when the connection was cut, and `Refused` where the
    tape turns out to be damaged. `Stream.replay` makes one.

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

    def __init__(self, address: Address, socket: ClientConnection, encoding: Encoding) -> None:
        self._address = address
        self._socket = socket
        self._encoding = encoding
        self._conversation = Conversation()
        self._queue = self._conversation.queue
        self._state: State | None = None
        self._steering = asyncio.Lock()
        self._drops = False
        self._reader = asyncio.create_task(self._receive(), name="private replay")

    @classmethod
    async def begin(
        cls,
        address: Address,
        encoding: Encoding,
        tape: str,
        channels: Mapping[str, Sequence[str]],
        *,
        start: datetime | str | int | None,
        end: datetime | str | int | None,
        speed: float | str,
    ) -> PrivateReplay:
        """Connect and have it played; the arguments and errors are those of `Stream.replay`."""
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
    def state(self) -> State:
        """Where it stood when the server last told: at its begin, its end, and when steered."""
        assert self._state is not None
        return self._state

    @property
    def ended(self) -> bool:
        """Whether nothing more will come, but for what is waiting."""
        return self._queue.ended is not None

    # -- steering

    async def pause(self) -> State:
        """Have it stand still. What was sent before is still to be read.

        This and the other four return where it stands then; its mode is `ended` where it had ended
        meanwhile.

        Raises:
            Refused: the server refused.
            ConnectionFailed: it has ended before, or the server did not answer.
        """
        return await self._ask("replay.pause")

    async def resume(self) -> State:
        """Have it go on; returns and raises as `pause` does."""
        return await self._ask("replay.resume")

    async def seek(self, position: datetime | str | int) -> State:
        """Have it go on from another place, forth or back; what waits to be read is dropped.

        Args:
            position: in the recording's time, as `start` of `Stream.subscribe`.

        Raises:
            ValueError: that is no time. The rest is as for `pause`.
        """
        return await self._ask("replay.seek", {"position": _ns(position)}, drops=True)

    async def speed(self, speed: float | str) -> State:
        """Have it go on at another speed, as for `Stream.replay`; returns and raises as `pause`."""
        return await self._ask("replay.speed", {"speed": _speed(speed)})

    async def stop(self) -> State:
        """End it; what waits to be read is dropped. One that has ended already stays as it is."""
        if not self.ended:
            with suppress(ConnectionFailed):
                await self._ask("replay.stop", drops=True)
        await self.close()
        return self.state

    async def close(self) -> None:
        """Give up the connection, and with it the replay; iterations end."""
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
        """What is waiting, as `Stream.read` does; nothing when the replay has ended."""
        try:
            ticks = await self._queue.get_ticks(most)
        except StopAsyncIteration:
            return []
        assert not isinstance(ticks, Event)
        return ticks

    # -- the conversation

    async def _ask(
        self, action: str, fields: Mapping[str, Any] | None = None, *, drops: bool = False
    ) -> State:
        # One after the other: all replies carry the same id.
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
        return State.of_fields(reply)

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
            self._state = State.of_fields(notice)
            self._drops = False
            self._conversation.answer(notice)
            if self._state.mode is Mode.ENDED:
                self._conversation.end(StopAsyncIteration())
        elif not self._conversation.answer(notice):
            self._conversation.end(Refused(notice))


def _ns(place: datetime | str | int) -> int:
    return int(Time.from_wire(place))


def _speed(speed: float | str) -> int | float | str:
    return show_speed(MAX if speed == "max" else check_speed(float(speed)))
