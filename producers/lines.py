"""Ticks from JSON lines, in the form in which clients receive them."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from feed.encoding import from_wire, wire_names
from feed.errors import InvalidTick
from feed.ticks import Bar, Quote, Tick, Trade, validate
from feed.times import Time

_KINDS: Final[dict[str, type[Tick]]] = {"t": Trade, "q": Quote, "b": Bar}
_NAMES: Final = {tag: wire_names(kind) for tag, kind in _KINDS.items()}
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])


def parse_line(line: bytes, now: Time) -> Tick:
    """The tick that one line holds; a missing `t` means `now`.

    What a server adds, such as `seq`, is taken off again.

    Raises:
        InvalidTick: with what is wrong in this line.
    """
    try:
        fields = _OBJECT.decode(line.removeprefix(codecs.BOM_UTF8))
    except RecursionError:
        raise InvalidTick("not JSON: nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidTick(f"not a JSON object: {error}") from None
    known = _NAMES.get(str(fields.get("T")))
    if known is None:
        raise InvalidTick('T must be "t" (trade), "q" (quote) or "b" (bar)')
    unknown = sorted(fields.keys() - known)
    if unknown:
        raise InvalidTick(
            f"unknown field {unknown[0][:40]!a}; known are {', '.join(sorted(known))}"
        )
    tick = from_wire({"t": now, **fields})
    validate(tick)
    return replace(tick, seq=None, snap=False, conflated=0)


class LineSplitter:
    """Cuts a stream of bytes into lines, holding no more than one line.

    Args:
        max_bytes: of a line; of a longer one `feed` yields None.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """The lines that are complete with this data; an empty `data` means the end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data and self._rest:
            lines, self._rest = [self._rest], b""
        for line in lines:
            if self._skipping:
                self._skipping = False
            elif len(line) > self._max_bytes:
                yield None
            else:
                yield line
        if len(self._rest) > self._max_bytes:
            if not self._skipping:
                yield None
            self._skipping, self._rest = True, b""
