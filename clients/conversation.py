"""What is asked of a server, and what it says: replies find who asked, ticks wait in a queue."""

from __future__ import annotations

import asyncio
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from clients.state import Message, Notice, Refused
from clients.tick_queue import TickQueue
from feed.errors import ConnectionFailed

REPLY_TIMEOUT_S: Final = 10.0


class Conversation:
    """Questions that wait for their replies, and the queue of what else has come.

    Attributes:
        queue: ticks and events, for the program.
    """

    def __init__(self) -> None:
        self._replies: dict[int, asyncio.Future[Notice]] = {}
        # A reply comes behind the ticks sent before it: read on while somebody waits for one.
        self.queue = TickQueue(is_urgent=lambda: bool(self._replies))

    async def ask(self, socket: ClientConnection, question: Message) -> Notice:
        """Send a question, and wait for its reply; somebody else is to read it.

        Raises:
            Refused: the server has answered with an error.
            ConnectionFailed: it has not answered at all.
        """
        id_, message = question
        if self.queue.ended:
            raise ConnectionFailed("the stream has ended") from self.queue.ended
        reply = self._replies[id_] = asyncio.get_running_loop().create_future()
        try:
            await socket.send(message)
            self.queue.look_again()
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
        """Hand a reply to whoever waits for it; says whether somebody does."""
        reply = self._replies.get(notice.get("id", 0))
        if reply is None or reply.done():
            return False
        reply.set_result(notice)
        return True

    def fail(self, error: ConnectionFailed) -> None:
        """No question that was asked will be answered."""
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(error)

    def end(self, reason: Exception) -> None:
        """Let everybody who waits know that nothing more will come; the first reason counts."""
        over = ConnectionFailed("the stream has ended")
        self.fail(reason if isinstance(reason, ConnectionFailed) else over)
        self.queue.end(reason)
