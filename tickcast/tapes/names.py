"""The names of tapes and their files. No I/O."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tickcast.wire.times import Time

SUFFIX: Final = ".jsonl.zst"
MANIFEST_SUFFIX: Final = ".manifest.json"
_ID = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")
_NUMBERED = re.compile(r"([a-z0-9_-]{1,32})-(\d{6,9})-\d{8}T\d{6}Z")


def is_tape_id(text: str) -> bool:
    """Whether `text` is a valid name of a tape, which is never a path or a hidden file."""
    return _ID.fullmatch(text) is not None


def id_of(path: Path) -> str:
    """Return the name of the tape in a file: the file name without suffixes."""
    return path.name.removesuffix(SUFFIX)


def manifest_path(path: Path) -> Path:
    """Return the path of a tape's manifest, in the same folder."""
    return path.with_name(id_of(path) + MANIFEST_SUFFIX)


def recording_id(feed: str, number: int, began: Time) -> str:
    """Return the name of a recorder's tape, such as `live-000007-20260105T143000Z`.

    The number determines the order, even if a clock was set back.
    """
    stamp = Time(began // 10**9 * 10**9).rfc3339()
    return f"{feed}-{number:06d}-{re.sub('[-:]', '', stamp)}"


def number_of(id_: str, feed: str) -> int | None:
    """Return the number in the name of a recorder's tape of this feed, or None for other names."""
    match = _NUMBERED.fullmatch(id_)
    return int(match[2]) if match and match[1] == feed else None
