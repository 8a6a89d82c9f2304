"""Private replays: one of the server's tapes, played to one program over a separate connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tickcast.client.connection import (
    PendingRequests,
    ServerAddress,
    describe_close,
    open_connection,
    receive_frame,
)
from tickcast.client.messages import (
    Event,
    Notice,
    Refused,
    decode_frame,
    encode_frame,
    parse_tick,
    reading_frame,
    subprotocol_of,
)
from tickcast.client.state import Message
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import ConnectionFailed
from tickcast.wire.playback import MAX_SPEED, ReplayMode, ReplayState, check_speed, format_speed
from tickcast.wire.ticks import TICK_TYPES, Tick
from tickcast.wire.times import Time

# The id of the replay, which is the only one on its connection.
_ID: Final = 1


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

    >>> import asyncio
    >>> from tickcast import connect
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
        self._requests = PendingRequests()
        self._queue = self._requests.queue
        self._state: ReplayState | None = None
        # One command at a time, because all replies carry the same id.
        self._commands = asyncio.Lock()
        # After a seek or stop, ticks that the server sent before its reply are outdated.
        self._discards_ticks = False
        self._reader = asyncio.create_task(self._receive_all(), name="private replay")

    @classmethod
    async def start(
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
        bounds = {"start": start, "end": end}
        fields = {
            "tape": tape,
            **{channel: symbols for channel, symbols in channels.items() if symbols},
            **{name: _ns(time) for name, time in bounds.items() if time is not None},
            "speed": _speed(speed),
        }
        # A connection of its own: a slow reader holds up everything else on its connection.
        socket = await open_connection(address, subprotocol_of(encoding))
        replay = cls(address, socket, encoding)
        try:
            await replay._command("replay", fields)
        except BaseException:  # Cancellation included, or the connection would leak.
            await replay.close()
            raise
        return replay

    @property
    def state(self) -> ReplayState:
        """The state that the server last reported: at the start, the end, or after a command."""
        assert self._state is not None  # The reply to `replay` has set it.
        return self._state

    @property
    def ended(self) -> bool:
        """Whether the replay is over; unread ticks can still be read."""
        return self._queue.ended is not None

    # -- commands

    async def pause(self) -> ReplayState:
        """Pause the replay. Ticks sent before the pause can still be read.

        Like the other four commands, this returns the resulting state. Its mode is `ended` if the
        replay had ended meanwhile.

        Raises:
            Refused: the server refused the command.
            ConnectionFailed: the replay ended earlier, or the server did not answer.
        """
        return await self._command("replay.pause")

    async def resume(self) -> ReplayState:
        """Resume the replay; returns and raises as `pause` does."""
        return await self._command("replay.resume")

    async def seek(self, position: datetime | str | int) -> ReplayState:
        """Move the replay forward or back to another time, dropping unread ticks.

        Args:
            position: a time in the recording, in the formats of `start` in `Stream.subscribe`.

        Raises:
            ValueError: `position` is not a valid time. The other errors are those of `pause`.
        """
        return await self._command("replay.seek", {"position": _ns(position)}, discard_ticks=True)

    async def speed(self, speed: float | str) -> ReplayState:
        """Change the speed, as in `Stream.replay`; returns and raises as `pause` does."""
        return await self._command("replay.speed", {"speed": _speed(speed)})

    async def stop(self) -> ReplayState:
        """Stop the replay, dropping unread ticks. Does nothing to a replay that has ended."""
        if not self.ended:
            with suppress(ConnectionFailed):  # It may end at this moment.
                await self._command("replay.stop", discard_ticks=True)
        await self.close()
        return self.state

    async def close(self) -> None:
        """Close the connection, which ends the replay and any iteration over it."""
        self._reader.cancel()
        await asyncio.wait([self._reader])
        self._requests.end(StopAsyncIteration())
        await self._socket.close()

    # -- reading

    def __aiter__(self) -> PrivateReplay:
        return self

    async def __anext__(self) -> Tick:
        tick = await self._queue.get()
        assert not isinstance(tick, Event)
        return tick

    async def read(self, max_ticks: int = 1000) -> list[Tick]:
        """Return unread ticks, as `Stream.read` does; an empty list once the replay has ended."""
        try:
            ticks = await self._queue.get_ticks(max_ticks)
        except StopAsyncIteration:
            return []
        assert not isinstance(ticks, Event)
        return ticks

    # -- requests and replies

    async def _command(
        self, action: str, fields: Mapping[str, Any] | None = None, *, discard_ticks: bool = False
    ) -> ReplayState:
        async with self._commands:
            if discard_ticks:
                self._discards_ticks = True
                self._queue.clear()
            frame = encode_frame({"action": action, "id": _ID, **(fields or {})}, self._encoding)
            try:
                reply = await self._requests.request(self._socket, Message(_ID, frame))
            finally:
                self._discards_ticks = False
        return ReplayState.from_fields(reply)

    async def _receive_all(self) -> None:
        try:
            while not self.ended:
                with reading_frame():
                    await self._process(decode_frame(await receive_frame(self._socket)))
        except ConnectionClosed as closed:
            text = f"{self._address.url}: {describe_close(closed)}"
            self._requests.end(ReplayCut(f"{text}; a private replay is not resumed"))
        except Exception as error:
            # Nothing awaits this task, so the error reaches the program through the queue.
            self._requests.end(error)
        await self._socket.close()

    async def _process(self, messages: list[Notice]) -> None:
        ticks = [parse_tick(each) for each in messages if each["T"] in TICK_TYPES]
        if ticks and not self._discards_ticks:
            await self._queue.put(ticks)
        # The ticks first: the reply to a command follows those sent before it.
        for notice in messages:
            if notice.get("id") == _ID:
                self._process_notice(notice)

    def _process_notice(self, notice: Notice) -> None:
        if notice["T"] == "replay":
            self._state = ReplayState.from_fields(notice)
            # Ticks behind the reply are wanted, even before the waiting task resumes.
            self._discards_ticks = False
            self._requests.resolve(notice)
            if self._state.mode is ReplayMode.ENDED:
                self._requests.end(StopAsyncIteration())
        elif not self._requests.resolve(notice):
            self._requests.end(Refused(notice))


def _ns(time: datetime | str | int) -> int:
    return int(Time.from_wire(time))


def _speed(speed: float | str) -> int | float | str:
    return format_speed(MAX_SPEED if speed == "max" else check_speed(float(speed)))
