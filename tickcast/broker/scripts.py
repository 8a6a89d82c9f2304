"""Lua scripts in Redis: loads and calls them, and translates their errors.

A script is called by its hash, so that its text is sent only once. After a restart or a failover,
Redis may not know the script. In this case it has done nothing, so the script is loaded and called
again. Each call declares its keys, which belong to one stream or one feed: their hash tags put them
on the same node of a cluster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any

from redis import exceptions
from redis.asyncio import Redis

from tickcast.broker.client import replies_of, translated_errors
from tickcast.broker.connection import PipelinedConnection, RedisCommand

Call = tuple[Sequence[str], Sequence[str | int | bytes]]
"""The keys and the other arguments of a call."""


class Script:
    """A Lua script.

    Args:
        reads_only: the script writes nothing. It can then be called without permission to write
            its keys.
    """

    def __init__(self, text: str, *, reads_only: bool = False) -> None:
        self._text = text
        self._verb = "EVALSHA_RO" if reads_only else "EVALSHA"
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def of_file(cls, name: str, *, reads_only: bool = False) -> Script:
        """Read a script from a file in this package."""
        text = resources.files("tickcast.broker").joinpath(name).read_text("utf-8")
        return cls(text, reads_only=reads_only)

    async def call(self, client: Redis, keys: Sequence[str], *arguments: str | int | bytes) -> Any:
        """Call the script and return its result.

        Raises:
            BrokerUnavailable, BrokerUnsuitable: see `translated_errors`.
        """
        (reply,) = await self.call_all(client, [(keys, arguments)])
        return reply

    async def call_all(self, client: Redis, calls: Sequence[Call]) -> list[Any]:
        """Make several calls and return their results in the same order. Raises like `call`."""

        async def send(commands: Sequence[RedisCommand]) -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return await replies_of(pipeline)

        return await self._call(client, send, calls)

    async def call_through(
        self, pipe: PipelinedConnection, client: Redis, calls: Sequence[Call]
    ) -> list[Any]:
        """Like `call_all`, but through a pipe. Raises like `call`."""
        return await self._call(client, pipe.call, calls)

    async def _call(
        self,
        client: Redis,
        send: Callable[[Sequence[RedisCommand]], Awaitable[list[Any]]],
        calls: Sequence[Call],
    ) -> list[Any]:
        commands = [self.command(keys, *arguments) for keys, arguments in calls]
        with translated_errors():
            replies = await send(commands)
            # Do not repeat the calls that were carried out.
            undone = [n for n, reply in enumerate(replies) if is_unknown(reply)]
            if undone:
                await self.load(client)
                again = await send([commands[n] for n in undone])
                for n, reply in zip(undone, again, strict=True):
                    replies[n] = reply
            for reply in replies:
                if isinstance(reply, exceptions.RedisError):
                    raise reply
        return replies

    def command(self, keys: Sequence[str], *arguments: str | int | bytes) -> RedisCommand:
        """Return a call as a command. The caller must check its reply with `is_unknown`."""
        return (self._verb, self._sha, len(keys), *keys, *arguments)

    async def load(self, client: Redis) -> None:
        """Load the script into Redis. Raises redis-py's exceptions."""
        await client.script_load(self._text)


def is_unknown(reply: object) -> bool:
    """Whether Redis refused a call because it does not know the script."""
    return isinstance(reply, exceptions.NoScriptError)
