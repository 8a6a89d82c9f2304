"""Lua scripts in Redis: loads and calls them, and translates their errors.

A script is called by its hash, so that its text is sent only once. After a restart or a failover,
Redis may not know the script. In this case it has done nothing, so the script is loaded and called
again. Each call declares its keys, which belong to one stream or one feed: their hash tags put them
on the same node of a cluster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from redis import exceptions
from redis.asyncio import Redis

from tickcast.broker.client import read_replies, translated_errors
from tickcast.broker.connection import PipelinedConnection, RedisCommand

# The keys and the other arguments of a call.
ScriptCall = tuple[Sequence[str], Sequence[str | int | bytes]]


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
    def from_file(cls, name: str, *, reads_only: bool = False) -> Script:
        """Read a script from a file in this package."""
        text = resources.files("tickcast.broker").joinpath(name).read_text("utf-8")
        return cls(text, reads_only=reads_only)

    async def call(self, client: Redis, keys: Sequence[str], *arguments: str | int | bytes) -> Any:
        """Call the script and return its result."""
        (reply,) = await self.call_all(client, [(keys, arguments)])
        return reply

    async def call_all(
        self,
        client: Redis,
        calls: Sequence[ScriptCall],
        connection: PipelinedConnection | None = None,
    ) -> list[Any]:
        """Make several calls, and return their results in the same order.

        Args:
            connection: make them over this connection, not over the client's pool.
        """

        async def send(commands: Sequence[RedisCommand]) -> list[Any]:
            if connection is not None:
                return await connection.call(commands)
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return await read_replies(pipeline)

        commands = [self.to_command(keys, *arguments) for keys, arguments in calls]
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

    def to_command(self, keys: Sequence[str], *arguments: str | int | bytes) -> RedisCommand:
        """Return a call as a command. The caller must check its reply with `is_unknown`."""
        return (self._verb, self._sha, len(keys), *keys, *arguments)

    async def load(self, client: Redis) -> None:
        """Load the script into Redis. Raises redis-py's exceptions."""
        await client.script_load(self._text)


def is_unknown(reply: object) -> bool:
    """Whether Redis refused a call because it does not know the script."""
    return isinstance(reply, exceptions.NoScriptError)
