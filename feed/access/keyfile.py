"""The file of API keys: read it, detect changes, and edit it without losing comments."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import tomlkit
from tomlkit.exceptions import TOMLKitError

from feed.access.keyring import Key, KeyRing, parse_keys
from tickcast.wire.errors import InvalidSettings, TickcastError

_SIZE_MAX: Final = 64 * 1024 * 1024


class KeyFile:
    """Reads a file of keys, and detects when it has changed since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: object = None

    def read(self) -> KeyRing:
        """Read the file.

        Raises:
            InvalidSettings: the file can't be read, or is not a file of keys.
        """
        self._seen = self.look()
        return parse_keys(_read(self.path), str(self.path))

    def has_changed(self) -> bool:
        """Whether the file differs from the one last read."""
        return self.look() != self._seen

    def note(self, seen: object) -> None:
        """Mark the state that `look` returned as read."""
        self._seen = seen

    def size_bytes(self) -> int:
        """The size of the file; 0 if it does not exist."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def look(self) -> object:
        """Return a value that changes whenever the file does."""
        try:
            stat = self.path.stat()
        except OSError as error:
            return error.errno
        return stat.st_ino, stat.st_size, stat.st_mtime_ns


def add_key(path: Path, key_id: str, key: Key) -> None:
    """Add a key to a file, creating the file if necessary.

    Raises:
        InvalidSettings, TickcastError: the file can't be read or written.
    """
    with _changed(path) as document:
        table = tomlkit.table()
        for name, value in msgspec.to_builtins(key, builtin_types=(datetime,)).items():
            table.add(name, list(value) if isinstance(value, tuple) else value)
        document.setdefault("keys", tomlkit.table(is_super_table=True)).append(key_id, table)


def revoke_key(path: Path, key_id: str, now: datetime) -> None:
    """Mark a key in a file as revoked.

    Raises:
        TickcastError: the key does not exist or is already revoked.
    """
    with _changed(path) as document:
        known = document.get("keys", {})
        if key_id not in known:
            raise TickcastError(f"{path}: no key {key_id!a}; `tickcast keys list` shows them")
        if "revoked" in known[key_id]:
            raise TickcastError(f"{path}: key {key_id} is revoked already")
        known[key_id]["revoked"] = now


@contextlib.contextmanager
def _changed(path: Path) -> Iterator[Any]:
    """Parse the file for editing, and replace it atomically with the result."""
    try:
        with _locked(path):
            text = _read(path) if path.exists() else ""
            parse_keys(text, str(path))
            document = tomlkit.parse(text)
            yield document
            changed = tomlkit.dumps(document)
            parse_keys(changed, str(path))
            _replace(path, changed)
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
