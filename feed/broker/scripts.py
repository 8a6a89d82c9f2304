"""Lua scripts in Redis: how one is loaded, called, and what of its errors becomes ours.

A script is called by its hash, so that its text travels once. Redis may have forgotten it, after a
restart or when another one took over; then it has done nothing, and is given the text and asked
again. A script names the keys that it touches, those of one stream or of one feed: with their hash
tags they lie together in a cluster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any

from redis import exceptions
from redis.asyncio import Redis

from feed.broker.client import replies_of, translated_errors
from feed.broker.pipe import Command, Pipe

Call = tuple[Sequence[str], Sequence[str | int | bytes]]
"""The keys and the other arguments of a call."""


class Script:
    """One script.

    Args:
        reads_only: it writes nothing; called so, it takes no right to write its keys.
    """

    def __init__(self, text: str, *, reads_only: bool = False) -> None:
        self._text = text
        self._verb = "EVALSHA_RO" if reads_only else "EVALSHA"
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def of_file(cls, name: str, *, reads_only: bool = False) -> Script:
        """A script that has a file of its own, beside this one."""
        text = resources.files("feed.broker").joinpath(name).read_text("utf-8")
        return cls(text, reads_only=reads_only)

    async def call(self, client: Redis, keys: Sequence[str], *arguments: str | int | bytes) -> Any:
        """What the script returns.

        Raises:
            BrokerUnavailable, BrokerUnsuitable: as `translated_errors` says.
        """
        (reply,) = await self.call_all(client, [(keys, arguments)])
        return reply

    async def call_all(self, client: Redis, calls: Sequence[Call]) -> list[Any]:
        """What it returns for each of several calls, in the same order. Raises as `call` does."""

        async def send(commands: Sequence[Command]) -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return await replies_of(pipeline)

        return await self._call(client, send, calls)

    async def call_through(self, pipe: Pipe, client: Redis, calls: Sequence[Call]) -> list[Any]:
        """The same over a connection of one's own. Raises as `call` does."""
        return await self._call(client, pipe.call, calls)

    async def _call(
        self,
        client: Redis,
        send: Callable[[Sequence[Command]], Awaitable[list[Any]]],
        calls: Sequence[Call],
    ) -> list[Any]:
        commands = [self.command(keys, *arguments) for keys, arguments in calls]
        with translated_errors():
            replies = await send(commands)
            # Those that were carried out are not repeated.
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

    def command(self, keys: Sequence[str], *arguments: str | int | bytes) -> Command:
        """A call as a command, for whoever looks after its reply; `is_unknown` is among them."""
        return (self._verb, self._sha, len(keys), *keys, *arguments)

    async def load(self, client: Redis) -> None:
        """Give Redis the text. Raises what redis-py raises."""
        await client.script_load(self._text)


def is_unknown(reply: object) -> bool:
    """Whether Redis has turned a call down because it does not have the script."""
    return isinstance(reply, exceptions.NoScriptError)
