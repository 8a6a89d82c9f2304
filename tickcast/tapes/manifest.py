"""The files of a tape: its name, and the manifest that describes its contents. No I/O."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from tickcast.tapes.format import VERSION, GapMark
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.errors import InvalidTape
from tickcast.wire.ticks import CHANNELS, is_feed_name, is_symbol
from tickcast.wire.times import Time

SUFFIX: Final = ".jsonl.zst"
MANIFEST_SUFFIX: Final = ".manifest.json"
# A name is never a path or a hidden file, because clients send names.
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


# A writer begins another tape before a manifest reaches this size.
MANIFEST_BYTES_MAX: Final = 256 * 1024 * 1024
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class FrameEntry(NamedTuple):
    """One frame in the index."""

    # Where the frame begins in the file, in bytes.
    offset: _Count
    ticks: _Count
    # The least and the greatest time of its ticks, in nanoseconds since the Unix epoch; None
    # without ticks.
    first: int | None
    last: int | None


class StreamSummary(Struct, kw_only=True):
    """The contents of one stream of a tape."""

    channel: str
    symbol: str
    ticks: _Count
    # The least and the greatest time of its ticks; None without ticks.
    first: Time | None = None
    last: Time | None = None
    # The numbers of its first and its last tick.
    first_seq: int | None = None
    last_seq: int | None = None
    # The epoch at the end of the stream; empty if unknown.
    epoch: str = ""
    # The last number that is accounted for, by a tick or by a gap.
    seq: int | None = None
    # The hash of its ticks' lines, see `docs/recording.md`.
    sha256: str


class Manifest(Struct, kw_only=True):
    """The contents of a tape."""

    version: int = VERSION
    feed: str
    # Where the ticks came from.
    source: str = ""
    # Whether the recording was completed. If not, this was read from the file.
    complete: bool
    ticks: _Count
    # The least and the greatest time of its ticks; None without ticks.
    first: Time | None = None
    last: Time | None = None
    # The total size of its frames in the file.
    bytes: _Count
    # The hash of its ticks, see `content_hash`.
    content: str
    streams: list[StreamSummary]
    # The missing ticks, in the tape's order.
    gaps: list[GapMark]
    # The index.
    frames: list[FrameEntry]


def _decode_time(kind: type, value: object) -> object:
    if kind is Time:
        return Time.from_wire(value)
    raise NotImplementedError(f"no decoding for {kind.__name__}")


_DECODER: Final = msgspec.json.Decoder(Manifest, dec_hook=_decode_time)


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest as a JSON object with a line for each key, stream and gap."""
    lines = []
    for name in manifest.__struct_fields__:
        value = getattr(manifest, name)
        if name in ("streams", "gaps") and value:
            rows = b",\n    ".join(encode(each, Encoding.JSON) for each in value)
            text = b"[\n    " + rows + b"\n  ]"
        else:
            text = encode(value, Encoding.JSON)
        lines.append(b'  "%b": %b' % (name.encode(), text))
    return b"{\n" + b",\n".join(lines) + b"\n}\n"


def decode_manifest(data: bytes) -> Manifest:
    """Decode the output of `encode_manifest`. Raises InvalidTape."""
    try:
        manifest = _DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidTape(f"not a manifest: {error}") from None
    if manifest.version != VERSION:
        raise InvalidTape(f"unknown version {manifest.version} of the format; this is {VERSION}")
    if not is_feed_name(manifest.feed):
        raise InvalidTape("not a manifest: invalid feed")
    if not all(each.channel in CHANNELS and is_symbol(each.symbol) for each in manifest.streams):
        raise InvalidTape("not a manifest: invalid stream")
    _check_frames(manifest)
    return manifest


def _check_frames(manifest: Manifest) -> None:
    offsets = [each.offset for each in manifest.frames]
    rising = all(before < after for before, after in pairwise([*offsets, manifest.bytes]))
    if not rising or (offsets and offsets[0] != 0):
        raise InvalidTape("not a manifest: its frames are not in order")
    if any(each.ticks and (each.first is None or each.last is None) for each in manifest.frames):
        raise InvalidTape("not a manifest: a frame without times")
