"""Requests to a server: matches replies to requests, and queues ticks and events."""

from __future__ import annotations

import asyncio
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tickcast.client.state import Message, Notice, Refused
from tickcast.client.tick_queue import TickQueue
from tickcast.wire.errors import ConnectionFailed

REPLY_TIMEOUT_S: Final = 10.0


class PendingRequests:
    """Requests that wait for replies, and the queue of received ticks and events.

    Attributes:
        queue: ticks and events for the program.
    """

    def __init__(self) -> None:
        self._replies: dict[int, asyncio.Future[Notice]] = {}
        # A reply follows the ticks sent before it, so keep reading while a request is pending.
        self.queue = TickQueue(is_urgent=lambda: bool(self._replies))

    async def ask(self, socket: ClientConnection, question: Message) -> Notice:
        """Send a request and wait for its reply, which another task must read and pass to `answer`.

        Raises:
            Refused: the server replied with an error.
            ConnectionFailed: the server did not reply.
        """
        id_, message = question
        if self.queue.ended:
            raise ConnectionFailed("the stream has ended") from self.queue.ended
        reply = self._replies[id_] = asyncio.get_running_loop().create_future()
        try:
            await socket.send(message)
            self.queue.recheck()
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                notice: Notice = await reply
        except ConnectionClosed:
            raise ConnectionFailed("the connection was cut") from None
        except TimeoutError:
            behind = f", or does so behind {len(self.queue)} ticks" if self.queue.is_full else ""
            raise ConnectionFailed(f"the server does not answer{behind}") from None
        finally:
            self._replies.pop(id_, None)
        if notice["T"] == "error":
            raise Refused(notice)
        return notice

    def answer(self, notice: Notice) -> bool:
        """Deliver a reply to the request with its `id`; return whether one was waiting."""
        reply = self._replies.get(notice.get("id", 0))
        if reply is None or reply.done():
            return False
        reply.set_result(notice)
        return True

    def fail(self, error: ConnectionFailed) -> None:
        """Fail all pending requests with an error."""
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(error)

    def end(self, reason: Exception) -> None:
        """Fail pending requests and end the queue; the first reason given is kept."""
        over = ConnectionFailed("the stream has ended")
        self.fail(reason if isinstance(reason, ConnectionFailed) else over)
        self.queue.end(reason)
