"""Read a large file of keys in a separate process.

Parsing 10,000 keys takes a second and would block the event loop, even from a thread, because
Python runs one thread at a time. The process prints the keys as MessagePack, in parts.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from msgspec import Struct

from feed.access.keyfile import KeyFile
from feed.access.keyring import Key, KeyRing
from tickcast.wire.errors import InvalidSettings

_APART_BYTES: Final = 16 * 1024
"""A smaller file, with about 60 keys, is parsed in a few milliseconds."""
_WORDS_PER_PART: Final = 2000
"""Limits the keys and symbols in a part, so that processing it takes a millisecond or two."""
_SIZE_BYTES: Final = 4
_PATIENCE_S: Final = 120.0
_ROOT: Final = Path(__file__).resolve().parents[2]


class _Part(Struct, omit_defaults=True):
    """Some keys, or an error in the file. The last part has neither."""

    keys: dict[str, Key] = {}
    fault: str = ""


_DECODER: Final = msgspec.msgpack.Decoder(_Part)


async def read_again(file: KeyFile, known: KeyRing) -> KeyRing:
    """Read a file of keys without blocking the event loop.

    Args:
        known: the previous keys. Keys that have not changed remain the same objects.

    Raises:
        InvalidSettings: the file can't be read, or is not a file of keys.
        OSError, TimeoutError: the process that reads it could not be run.
    """
    if file.size_bytes() <= _APART_BYTES:
        return file.read()
    seen = file.look()
    ring = KeyRing()
    async with asyncio.timeout(_PATIENCE_S):
        async with aclosing(_read_apart(file.path)) as parts:
            async for keys in parts:
                for key_id, key in keys.items():
                    before = known.keys.get(key_id)
                    ring.keys[key_id] = before if before == key else key
                await asyncio.sleep(0)
    file.note(seen)
    return ring


async def _read_apart(path: Path) -> AsyncGenerator[dict[str, Key], None]:
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
            size = int.from_bytes(await process.stdout.readexactly(_SIZE_BYTES), "big")
            part = _DECODER.decode(await process.stdout.readexactly(size))
            if part.fault:
                raise InvalidSettings(part.fault)
            if not part.keys:
                return
            yield part.keys
    except asyncio.IncompleteReadError:
        raise ChildProcessError("the process that reads the keys has ended") from None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def main(path: Path, out: BinaryIO) -> None:
    """Run the separate process: read the file and print the parts."""
    os.nice(10)  # Give the server priority if CPU time is scarce.

    def put(part: _Part) -> None:
        data = msgspec.msgpack.encode(part)
        out.write(len(data).to_bytes(_SIZE_BYTES, "big") + data)

    try:
        ring = KeyFile(path).read()
    except InvalidSettings as error:
        put(_Part(fault=str(error)))
        return
    for keys in _parts(ring):
        put(_Part(keys=keys))
    put(_Part())


def _parts(ring: KeyRing) -> Iterator[dict[str, Key]]:
    part: dict[str, Key] = {}
    words = 0
    for key_id, key in ring.keys.items():
        part[key_id] = key
        words += 10 + len(key.symbols)
        if words >= _WORDS_PER_PART:
            yield part
            part, words = {}, 0
    if part:
        yield part


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdout.buffer)
