"""A real store that admits only the users of the aclfile in docs/security.md."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from tests.faults.valkey import Valkey
from tickcast.broker.client import make_client

ADMIN = "default"
PUBLISHER = "tickcast-publisher"
BAR_MAKER = "tickcast-bars"
SERVER = "tickcast-server"
READER = "tickcast-reader"
USERS = (ADMIN, PUBLISHER, BAR_MAKER, SERVER, READER)

PAGE = Path(__file__).resolve().parents[3] / "docs" / "security.md"
SECTION = PAGE.read_text("utf-8").partition("## Redis: users with least rights\n")[2]


def block(language: str) -> str:
    """The first code block in a language in the page's section about users."""
    return SECTION.partition(f"```{language}\n")[2].partition("```\n")[0]


def template(feed: str = "live", database: int = 0) -> str:
    """The aclfile for a feed and a database, adapted as the page says; `*` means every feed."""
    text = block("acl").replace("live", feed)
    if database:
        text = text.replace("&tickcast:", f"&tickcast@{database}:")
        text = text.replace("+script|load", "+script|load +select")
    return text


class LockedStore(Valkey):
    """A valkey-server with the aclfile; it keeps its data through a SIGKILL.

    The commands of the page create its passwords.
    """

    def __init__(self, directory: Path, feed: str, database: int) -> None:
        super().__init__(directory, keeps=True)
        self.feed = feed
        self.database = database
        (directory / "users.txt").write_text(template(feed, database))
        subprocess.run(["sh", "-eu", "-c", block("sh")], cwd=directory, check=True)
        self._aclfile = directory / "users.acl"

    @property
    def url(self) -> str:
        return self.url_of(ADMIN)

    def url_of(self, user: str) -> str:
        return f"redis://{user}:{self._password_of(user)}@127.0.0.1:{self.port}/{self.database}"

    def _password_of(self, user: str) -> str:
        return (self._directory / f"{user}.password").read_text().strip()

    def rules_of(self, user: str) -> list[str]:
        """The rules of a user in the aclfile, without the name."""
        (line,) = (
            line
            for line in self._aclfile.read_text().splitlines()
            if line.startswith(f"user {user} ")
        )
        return re.findall(r"\([^)]*\)|\S+", line)[2:]

    def commands_of(self, user: str) -> set[str]:
        """Every command that a user may run on some keys."""
        return set(re.findall(r"\+([^ )]+)", " ".join(self.rules_of(user))))

    async def take_away(self, user: str, command: str) -> None:
        """Remove one right of a user, and keep all others."""
        left = (re.sub(rf" ?\+{re.escape(command)}(?=[ )]|$)", "", r) for r in self.rules_of(user))
        await self.ask("ACL", "SETUSER", user, *filter(None, left))

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


@asynccontextmanager
async def locked_store(
    directory: Path, feed: str = "live", database: int = 0
) -> AsyncIterator[LockedStore]:
    store = LockedStore(directory, feed, database)
    try:
        await store.start()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def client_of(store: LockedStore, user: str) -> AsyncIterator[Redis]:
    async with make_client(store.url_of(user)) as client:
        yield client
