"""A real store that admits only the users that `tickcast acl` prints."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from tests.faults.valkey import Valkey
from tickcast.broker.acl import (
    ADMIN,
    ANY,
    AclRule,
    aclfile,
    bar_maker_of,
    placeholder,
    publisher_of,
    rules,
    users,
)
from tickcast.broker.client import make_client


class LockedStore(Valkey):
    """A valkey-server with the aclfile for some feeds; it keeps its data through a SIGKILL."""

    def __init__(self, directory: Path, feeds: Sequence[str], database: int) -> None:
        super().__init__(directory, keeps=True)
        self.feeds = feeds
        self.database = database
        self.users = users(feeds, database)
        self._aclfile = directory / "users.acl"
        text = aclfile(feeds, database)
        for name in (ADMIN, *self.users):
            # Include the space, since the names of some users begin with the names of others.
            text = text.replace(f"{placeholder(name)} ", f"#{sha256(password_of(name))} ")
        self._aclfile.write_text(text)

    @property
    def url(self) -> str:
        return self.url_of(ADMIN)

    def url_of(self, user: str) -> str:
        return f"redis://{user}:{password_of(user)}@127.0.0.1:{self.port}/{self.database}"

    def publisher(self, feed: str) -> str:
        """Return the user that may publish into a feed."""
        return publisher_of(feed if self.feeds else ANY)

    def bar_maker(self, feed: str) -> str:
        """Return the user that may make a feed's bars."""
        return bar_maker_of(feed if self.feeds else ANY)

    async def start(self, **more: str) -> None:
        await super().start(aclfile=str(self._aclfile), **more)

    async def ask(self, *words: str | int) -> Any:
        """Run a command as the administrator and return the answer."""
        return await self.admin.execute_command(*words)  # type: ignore[no-untyped-call]

    async def refused(self) -> list[str]:
        """Return each refusal since the start, with the user."""
        log: Any = await self.admin.acl_log()
        return [f"{entry['username']}: {entry['reason']} {entry['object']}" for entry in log]

    async def may(self, user: str, command: str) -> str:
        """Return OK, or the reason why the user may not run a command."""
        answer: bytes | str = await self.ask("ACL", "DRYRUN", user, *command.split())
        return answer.decode() if isinstance(answer, bytes) else answer

    async def used(self) -> set[str]:
        """Return every command that was used, including those in scripts, spelled as in a grant."""
        stats: Any = await self.admin.info("commandstats")
        return {
            name.removeprefix("cmdstat_")
            for name, of in stats.items()
            if of["calls"] > of["rejected_calls"] + of["failed_calls"]
        }


def commands_of(grants: Iterable[AclRule]) -> set[str]:
    return {command for grant in grants for command in grant.commands.split()}


def password_of(user: str) -> str:
    return f"the-password-of-{user}"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@asynccontextmanager
async def locked_store(
    directory: Path, feeds: Sequence[str], database: int = 0
) -> AsyncIterator[LockedStore]:
    store = LockedStore(directory, feeds, database)
    try:
        await store.start()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def client_of(store: LockedStore, user: str) -> AsyncIterator[Redis]:
    async with make_client(store.url_of(user)) as client:
        yield client


async def take_away(store: LockedStore, user: str, command: str) -> None:
    """Remove one right of a user, and keep all others."""
    reset, on, *granted = rules(store.users[user])
    left = (re.sub(rf" ?\+{re.escape(command)}(?=[ )]|$)", "", rule) for rule in granted)
    await store.ask("ACL", "SETUSER", user, reset, on, f">{password_of(user)}", *filter(None, left))
