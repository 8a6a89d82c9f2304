"""The file of API keys: read and reload it, and edit it without losing comments.

Parsing 10,000 keys takes a second and would block the event loop, even from a thread, because
Python runs one thread at a time. A large file is therefore reloaded by a separate process, which
prints the keys as MessagePack, in parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import tomlkit
from msgspec import Struct
from tomlkit.exceptions import TOMLKitError

from feed.access.keys import Key, parse_keys
from tickcast.wire.errors import InvalidSettings, TickcastError

_SIZE_MAX: Final = 64 * 1024 * 1024
# A smaller file, with about 60 keys, is parsed in a few milliseconds.
_SMALL_BYTES: Final = 16 * 1024
# Limits the keys and symbols in a part, so that processing it takes a millisecond or two.
_WORDS_PER_PART: Final = 2000
_LENGTH_BYTES: Final = 4
_PROCESS_TIMEOUT_S: Final = 120.0
_ROOT: Final = Path(__file__).resolve().parents[2]


class KeyFile:
    """Reads a file of keys, and detects when it has changed since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version: object = None

    def load(self) -> dict[str, Key]:
        """Read the file and return the keys by id. Raises InvalidSettings."""
        self._version = self._current_version()
        return parse_keys(_read(self.path), str(self.path))

    async def reload(self, known: dict[str, Key]) -> dict[str, Key] | None:
        """Read the file again without blocking the event loop, if it has changed.

        Each version of an invalid file is reported once.

        Args:
            known: the previous keys. Keys that have not changed remain the same objects.

        Raises:
            InvalidSettings: the file can't be read, or is not a file of keys.
            OSError, TimeoutError: the process that reads it could not be run.
        """
        version = self._current_version()
        if version == self._version:
            return None
        if not isinstance(version, tuple) or self.path.stat().st_size <= _SMALL_BYTES:
            return self.load()
        keys: dict[str, Key] = {}
        try:
            async with asyncio.timeout(_PROCESS_TIMEOUT_S):
                async with contextlib.aclosing(_read_in_process(self.path)) as parts:
                    async for part in parts:
                        for key_id, key in part.items():
                            before = known.get(key_id)
                            keys[key_id] = before if before == key else key
                        await asyncio.sleep(0)
        except InvalidSettings:
            self._version = version
            raise
        self._version = version
        return keys

    def _current_version(self) -> object:
        """Return a value that changes whenever the file does."""
        try:
            stat = self.path.stat()
        except OSError as error:
            return error.errno
        return stat.st_ino, stat.st_size, stat.st_mtime_ns


def add_key(path: Path, key_id: str, key: Key) -> None:
    """Add a key to a file, creating the file if necessary.

    Raises InvalidSettings or TickcastError.
    """
    with _edited(path) as document:
        table = tomlkit.table()
        for name, value in msgspec.to_builtins(key, builtin_types=(datetime,)).items():
            table.add(name, list(value) if isinstance(value, tuple) else value)
        document.setdefault("keys", tomlkit.table(is_super_table=True)).append(key_id, table)


def revoke_key(path: Path, key_id: str, now: datetime) -> None:
    """Mark a key in a file as revoked. Raises TickcastError."""
    with _edited(path) as document:
        keys = document.get("keys", {})
        if key_id not in keys:
            raise TickcastError(f"{path}: no key {key_id!a}; `tickcast keys list` shows them")
        if "revoked" in keys[key_id]:
            raise TickcastError(f"{path}: key {key_id} is already revoked")
        keys[key_id]["revoked"] = now


@contextlib.contextmanager
def _edited(path: Path) -> Iterator[Any]:
    """Parse the file for editing, and replace it atomically with the result."""
    try:
        with _locked(path):
            text = _read(path) if path.exists() else ""
            parse_keys(text, str(path))
            document = tomlkit.parse(text)
            yield document
            edited = tomlkit.dumps(document)
            parse_keys(edited, str(path))
            _replace(path, edited)
    except TOMLKitError as error:
        raise InvalidSettings(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise TickcastError(f"{path}: {error.strerror}") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the directory, so that nothing else changes its keys at the same time."""
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _replace(path: Path, text: str) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _SIZE_MAX:
            raise InvalidSettings(f"{path}: too large for a file of keys")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidSettings(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidSettings(f"{path}: not TOML: {error}") from None


# -- reading in a separate process


class _Part(Struct, omit_defaults=True):
    """Some keys, or an error in the file. The last part has neither."""

    keys: dict[str, Key] = {}
    error: str = ""


_DECODER: Final = msgspec.msgpack.Decoder(_Part)


async def _read_in_process(path: Path) -> AsyncGenerator[dict[str, Key], None]:
    # -P excludes the current directory, which may contain a `feed.py`, from the module search.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", __name__, str(path),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(
            filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))
        )},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        while True:
            size = int.from_bytes(await process.stdout.readexactly(_LENGTH_BYTES), "big")
            part = _DECODER.decode(await process.stdout.readexactly(size))
            if part.error:
                raise InvalidSettings(part.error)
            if not part.keys:
                return
            yield part.keys
    except asyncio.IncompleteReadError:
        raise ChildProcessError("the process that reads the keys has ended") from None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _print_parts(path: Path, out: BinaryIO) -> None:
    os.nice(10)  # Give the server priority if CPU time is scarce.

    def put(part: _Part) -> None:
        data = msgspec.msgpack.encode(part)
        out.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)

    part, words = _Part({}), 0
    try:
        for key_id, key in KeyFile(path).load().items():
            part.keys[key_id] = key
            words += 10 + len(key.symbols)
            if words >= _WORDS_PER_PART:
                put(part)
                part, words = _Part({}), 0
    except InvalidSettings as error:
        put(_Part(error=str(error)))
        return
    if part.keys:
        put(part)
    put(_Part())


if __name__ == "__main__":
    _print_parts(Path(sys.argv[1]), sys.stdout.buffer)
