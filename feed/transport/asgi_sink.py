"""A sink for ASGI servers other than our own. It sends frame by frame through `send`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.websockets import WebSocket, WebSocketDisconnect

from tickcast.wire.encoding import TEXT, split_frames
from tickcast.wire.errors import CLOSE_GRACE_S, CloseCode


class AsgiSink:
    """Accepts frames immediately and sends them from a separate task, `run`.

    Attributes:
        paused, on_pause, write: see `feed.fanout.outbox.Sink`.
        on_drain: called when everything has been sent.
        on_shutdown, on_flood: never called, because only our own server reports these events.
    """

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._pending: list[bytes] = []
        self._size = 0
        self._has_frames = asyncio.Event()
        self._close: tuple[CloseCode, str] | None = None
        self._task = asyncio.current_task()
        self.paused = False
        self.write: Callable[[bytes], None] = self._add
        self.on_pause: Callable[[], None] = lambda: None
        self.on_drain: Callable[[], None] = lambda: None
        self.on_shutdown: Callable[[], bytes] = bytes
        self.on_flood: Callable[[], None] = lambda: None

    def buffered(self) -> int:
        """The number of bytes taken that the server has not accepted yet."""
        return self._size

    def finish(self, last_frames: bytes, code: CloseCode, reason: str = "") -> None:
        """Send the last frames and close; cancel the endpoint task if the client does not read."""
        self._add(last_frames)
        self._close = (code, reason)
        if self._task is not None:
            asyncio.get_running_loop().call_later(CLOSE_GRACE_S, self._task.cancel)

    async def run(self) -> None:
        """Send until `finish` was called and everything is sent, or the client is gone."""
        try:
            while self._close is None or self._pending:
                await self._has_frames.wait()
                self._has_frames.clear()
                pending, self._pending = self._pending, []
                for frames in pending:
                    for opcode, payload in split_frames(frames):
                        if opcode == TEXT:
                            await self._websocket.send_text(payload.decode())
                        else:
                            await self._websocket.send_bytes(payload)
                    self._size -= len(frames)
                self.paused = False
                self.on_drain()
            await self._websocket.close(*self._close)
        except (WebSocketDisconnect, RuntimeError):
            pass  # The client is gone; the reader notices too.

    def _add(self, data: bytes) -> None:
        self._pending.append(data)
        self._size += len(data)
        self.paused = True
        self.on_pause()
        self._has_frames.set()
