"""Messages far above the limit are refused before they use memory, in whatever frames they come."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from tests.faults.serving import ServerProcess, can_look_inside
from tests.wire import CLOSE, CONTINUATION, TEXT, Wire, frame, greeted, header

_MIB: Final = 1024 * 1024
_MESSAGE_BYTES: Final = 60 * _MIB
_GROWTH_BYTES: Final = 2 * _MIB
_KEPT_SENDING: Final = b"x" * _MIB


@pytest_asyncio.fixture
async def process(redis_url: str, runtime_dir: Path) -> AsyncIterator[ServerProcess]:
    process = ServerProcess(runtime_dir.parent / "log", redis_url)
    try:
        await process.start()
        yield process
    finally:
        process.kill()


def one_frame() -> Iterator[bytes]:
    yield header(TEXT, _MESSAGE_BYTES, 8)
    yield from (_KEPT_SENDING for _ in range(_MESSAGE_BYTES // len(_KEPT_SENDING)))


def a_length_of_2_to_the_62() -> Iterator[bytes]:
    yield header(TEXT, 1 << 62, 8)
    yield from (_KEPT_SENDING for _ in range(_MESSAGE_BYTES // len(_KEPT_SENDING)))


def in_fragments(size: int) -> Iterator[bytes]:
    yield frame(TEXT, b"x" * size, final=False)
    fragment = frame(CONTINUATION, b"x" * size, final=False)
    at_once = max(1, _MIB // len(fragment))
    yield from (fragment * at_once for _ in range(_MESSAGE_BYTES // (size * at_once)))


def a_deflate_bomb() -> Iterator[bytes]:
    deflate = zlib.compressobj(9, wbits=-15)
    bomb = deflate.compress(bytes(_MESSAGE_BYTES)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < 65_536  # Compressed, it is within the limit.
    yield frame(TEXT, bomb, reserved=4)


ATTACKS: Final[dict[str, tuple[Callable[[], Iterator[bytes]], int]]] = {
    "a deflate bomb": (a_deflate_bomb, 1002),
    "a length of 2^62": (a_length_of_2_to_the_62, 1009),
    "60 MB in one frame": (one_frame, 1009),
    "60 MB in fragments of 32 KB": (lambda: in_fragments(32_000), 1009),
    "60 MB in fragments of 100 bytes": (lambda: in_fragments(100), 4101),
}
"""The data that is sent, and the resulting close code."""


@pytest.mark.skipif(not can_look_inside(), reason="this system tells no process's memory")
async def test_what_is_too_big_is_refused_in_little_memory(process: ServerProcess) -> None:
    async def attack(pieces: Iterator[bytes], wire: Wire) -> int:
        """Send everything, or as much as is accepted; return the peak memory."""
        highest = 0
        for piece in pieces:
            taken = await wire.say(piece)
            highest = max(highest, process.rss_bytes())
            if not taken:
                break
        return highest

    offer = "permessage-deflate"
    async with greeted(process.http, Sec_WebSocket_Extensions=offer) as wire:
        await wire.say(frame(TEXT, b"x" * 65_536))  # The most that a client may make it hold.
        assert await wire.hear() is not None
    before = process.rss_bytes()
    grown, codes = {}, {}
    for name, (pieces, _) in ATTACKS.items():
        async with greeted(process.http, Sec_WebSocket_Extensions=offer) as wire:
            highest = await attack(pieces(), wire)
            heard = await wire.rest()
        codes[name] = [int.from_bytes(words[:2]) for opcode, words in heard if opcode == CLOSE]
        grown[name] = max(highest, process.rss_bytes()) - before
    assert codes == {name: [code] for name, (_, code) in ATTACKS.items()}
    assert max(grown.values()) < _GROWTH_BYTES, grown
    assert "Traceback" not in process.said()
