"""How `/stream` handles frames that follow RFC 6455, and frames that break it.

Each row sends bytes on a separate connection and lists the server's frames until it hangs up. Each
row is sent twice: in one piece, and byte by byte.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

import msgpack
import pytest

from tests.conftest import RunningServer, until
from tests.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    KEY,
    PING,
    PONG,
    TEXT,
    Frame,
    close_frame,
    closing,
    frame,
    greeted,
    handshake,
    header,
    mask,
    wired,
)

PROTOCOL_ERROR: Final = 1002
INVALID_DATA: Final = 1007
TOO_BIG: Final = 1009
LIMIT: Final = 65_536
"""The default of `message_max_bytes`."""


def ask(id: str = "a") -> bytes:
    """Return a message that is answered at once, with its id."""
    return json.dumps({"action": "ping", "id": id}, ensure_ascii=False).encode()


def answer(id: str = "a") -> Any:
    return {"T": "pong", "id": id}


ERROR: Final = {"T": "error", "code": 400}


class Row(NamedTuple):
    """One sequence of bytes that a client may send.

    Attributes:
        section: the section of RFC 6455 that the expectation comes from.
        heard: the close code with which the server fails the connection, or its answers. After
            answers a valid close frame is sent, whose echo is not listed.
    """

    section: str
    what: str
    said: bytes
    heard: int | list[Any]


def refused(section: str, code: int, **cases: bytes) -> list[Row]:
    return [Row(section, name.replace("_", " "), said, code) for name, said in cases.items()]


def told(heard: Frame) -> Any:
    """Convert a frame to the table's form, without times of answers and texts of errors."""
    opcode, payload = heard
    if opcode == CLOSE:
        return int.from_bytes(payload[:2]) if payload else None
    if opcode == PONG:
        return payload
    (message,) = json.loads(payload)
    return {name: each for name, each in message.items() if name not in ("t", "msg")}


FRAMES: Final = [
    Row("5.6", "a text message", frame(TEXT, ask()), [answer()]),
    Row("5.6", "a binary message", frame(BINARY, msgpack.packb({"action": "ping"})),
        [{"T": "pong"}]),
    Row("5.6", "an empty message", frame(TEXT), [ERROR]),
    *(Row("5.2", f"reserved bits {bits:03b} of a message", frame(TEXT, ask(), reserved=bits),
          PROTOCOL_ERROR) for bits in range(1, 8)),
    *(Row("5.2", f"reserved bits {bits:03b} of a ping", frame(PING, reserved=bits), PROTOCOL_ERROR)
      for bits in range(1, 8)),
    *(Row("5.2", f"reserved opcode {opcode}", frame(opcode, ask()), PROTOCOL_ERROR)
      for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    *(Row("5.1", f"opcode {opcode} without a mask", frame(opcode, b"\x03\xe8", masked=False),
          PROTOCOL_ERROR) for opcode in (TEXT, BINARY, CLOSE, PING, PONG)),
]  # fmt: skip

LENGTHS: Final = [
    # A sender must use the shortest form. The RFC does not say what a receiver does with others;
    # they are harmless, so the server accepts them.
    Row("5.2", "16 bits for a length below 126", header(TEXT, len(ask()), 2) + mask(ask()),
        [answer()]),
    Row("5.2", "64 bits for a length below 65536", header(TEXT, len(ask()), 8) + mask(ask()),
        [answer()]),
    Row("5.2", "64 bits, the first one set", header(TEXT, 1 << 63 | 5, 8), TOO_BIG),
    Row("5.2", "a length of 2^62", header(TEXT, 1 << 62, 8), TOO_BIG),
    Row("5.2", "a ping of 2^62 bytes", header(PING, 1 << 62, 8), TOO_BIG),
    Row("7.4.1", "a message at the limit", frame(TEXT, b"x" * LIMIT), [ERROR]),
    Row("7.4.1", "a message above it", frame(TEXT, b"x" * (LIMIT + 1)), TOO_BIG),
    Row("7.4.1", "a message far above it", frame(BINARY, b"x" * 1_000_000), TOO_BIG),
    Row("7.4.1", "fragments up to the limit",
        frame(TEXT, b"x" * (LIMIT // 2), final=False) + frame(CONTINUATION, b"x" * (LIMIT // 2)),
        [ERROR]),
    Row("7.4.1", "fragments above it",
        frame(TEXT, b"x" * (LIMIT // 2), final=False)
        + frame(CONTINUATION, b"x" * (LIMIT // 2 + 1), final=False), TOO_BIG),
    Row("7.4.1", "the next message has the whole limit again",
        frame(TEXT, b"x" * LIMIT, final=False) + frame(CONTINUATION) + frame(TEXT, b"x" * LIMIT),
        [ERROR, ERROR]),
    # Stricter than necessary: the library also counts the ping towards the limit.
    Row("7.4.1", "a ping behind fragments that have used up the limit",
        frame(TEXT, b"x" * LIMIT, final=False) + frame(PING, b"x"), TOO_BIG),
]  # fmt: skip

FRAGMENTS: Final = [
    Row("5.4", "two fragments",
        frame(TEXT, ask()[:9], final=False) + frame(CONTINUATION, ask()[9:]), [answer()]),
    Row("5.4", "empty fragments",
        frame(TEXT, final=False) + frame(CONTINUATION, ask(), final=False) + frame(CONTINUATION),
        [answer()]),
    Row("5.5", "the longest ping", frame(PING, b"x" * 125), [b"x" * 125]),
    Row("5.5.2", "an empty ping", frame(PING), [b""]),
    Row("5.5.3", "a pong that nobody asked for", frame(PONG, b"x") + frame(PING, b"y"), [b"y"]),
    Row("5.5", "a ping, its length in 16 bits", header(PING, 3, 2) + mask(b"abc"), [b"abc"]),
    *refused(
        "5.5", PROTOCOL_ERROR,
        a_ping_in_fragments=frame(PING, b"a", final=False),
        a_pong_in_fragments=frame(PONG, b"a", final=False),
        a_close_in_fragments=frame(CLOSE, closing(1000), final=False),
        a_ping_too_long=frame(PING, b"x" * 126),
        a_pong_too_long=frame(PONG, b"x" * 126),
        a_close_too_long=close_frame(1000, b"x" * 124),
    ),
    *refused(
        "5.4", PROTOCOL_ERROR,
        nothing_to_continue=frame(CONTINUATION, b"a"),
        nothing_more_to_continue=frame(CONTINUATION, b"a", final=False),
        a_text_amid_a_message=frame(TEXT, b"a", final=False) + frame(TEXT, ask()),
        a_binary_amid_a_message=frame(TEXT, b"a", final=False) + frame(BINARY, b"a", final=False),
    ),
    # Section 5.5.1 would also allow an echo: conformance/test_autobahn.py has more on it.
    *refused("5.4", PROTOCOL_ERROR,
             a_close_amid_a_message=frame(TEXT, b"a", final=False) + close_frame(1000)),
]  # fmt: skip

TEXTS: Final = [
    *(Row("8.1", f"U+{ord(each):04X}", frame(TEXT, ask(each)), [answer(each)])
      for each in ("\x7f", "\x80", "é", "\u2028", "\ud7ff", "\uffff", "\U0010ffff")),
    Row("8.1", "a character split over fragments",
        frame(TEXT, ask("é")[:-3], final=False) + frame(CONTINUATION, ask("é")[-3:]),
        [answer("é")]),
    Row("5.6", "no UTF-8 in a binary message", frame(BINARY, b"\xff"), [ERROR]),
    *(Row("8.1", f"the bytes {each.hex()}", frame(TEXT, each), INVALID_DATA)
      for each in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"ok\xc3")),
    Row("8.1", "a character broken over fragments",
        frame(TEXT, b"\xc3", final=False) + frame(CONTINUATION, b"("), INVALID_DATA),
    Row("8.1", "a reason that is no UTF-8", close_frame(1000, b"\xff"), INVALID_DATA),
]  # fmt: skip

CLOSES: Final = [
    Row("5.5.1", "no code", close_frame(), [None]),
    Row("5.5.1", "one byte", frame(CLOSE, b"\x03"), PROTOCOL_ERROR),
    *(Row("7.4", f"code {code}", close_frame(code, b"why"), [code]) for code in (
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000,
        4999)),
    *(Row("7.4", f"code {code}", close_frame(code), PROTOCOL_ERROR)
      for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)),
    Row("5.5.1", "frames behind a close frame",
        close_frame(4321) + frame(PING) + frame(TEXT, ask()) + close_frame() + frame(3), [4321]),
]  # fmt: skip

TABLES: Final = {
    "frames": FRAMES, "lengths": LENGTHS, "fragments": FRAGMENTS, "texts": TEXTS, "closes": CLOSES,
}  # fmt: skip


@pytest.mark.parametrize("in_drops", [False, True])
@pytest.mark.parametrize("table", TABLES)
async def test_frames_are_answered_or_refused_as_the_rfc_says(
    server: RunningServer, table: str, in_drops: bool, caplog: pytest.LogCaptureFixture
) -> None:
    found, expected = {}, {}
    for row in TABLES[table]:
        failed, closes = isinstance(row.heard, int), table == "closes"
        ending = b"" if failed or closes else close_frame(1000)
        heard = [row.heard] if isinstance(row.heard, int) else row.heard
        expected[row.what] = heard if failed or closes else [*heard, 1000]
        async with greeted(server.http) as wire:
            await wire.say(row.said + ending, in_drops=in_drops)
            found[row.what] = [told(each) for each in await wire.rest()]
    assert found == expected
    assert len(found) == len(TABLES[table])
    assert caplog.records == []
    await until(lambda: not server.server.server_state.connections)


async def test_a_ping_amid_a_message_is_answered_before_the_message(server: RunningServer) -> None:
    async with greeted(server.http) as wire:
        await wire.say(frame(TEXT, ask()[:5], final=False) + frame(PING, b"now"))
        assert await wire.hear() == (PONG, b"now")
        await wire.say(frame(CONTINUATION, ask()[5:]))
        heard = await wire.hear()
        assert heard is not None
        assert told(heard) == answer()


async def test_a_close_frame_comes_back_as_it_was(server: RunningServer) -> None:
    async with greeted(server.http) as wire:
        await wire.say(close_frame(4000, "adiós".encode()))
        assert await wire.rest() == [(CLOSE, closing(4000, "adiós".encode()))]


async def test_invalid_text_and_a_close_frame_in_one_read(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The close frame is answered before the text is checked, and there is only one answer."""
    async with greeted(server.http) as wire:
        await wire.say(frame(TEXT, b"\xff") + close_frame(4000))
        assert await wire.rest() == [(CLOSE, closing(4000))]
    assert caplog.records == []


async def test_no_frame_is_masked_however_long(server: RunningServer) -> None:
    # `Wire.hear` checks each frame; the second one states its length in 16 bits.
    async with greeted(server.http) as wire:
        for symbols in (["A"], [f"{number:032}" for number in range(1000)]):
            action = {"action": "subscribe", "trades": symbols}
            await wire.say(frame(TEXT, json.dumps(action).encode()))
            heard = await wire.hear()
            assert heard is not None
            assert set(symbols) <= set(told(heard)["trades"])


# ------------------------------------------------------------------------------- the handshake


async def test_the_handshake_is_accepted_with_the_key_of_the_rfc(server: RunningServer) -> None:
    async with wired(server.http) as wire:
        await wire.say(handshake(Sec_WebSocket_Extensions="permessage-deflate; client_no_context"))
        status, headers = await wire.answer()
    assert status == 101
    assert headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # Section 1.3.
    assert headers["upgrade"].lower() == "websocket"
    assert headers["connection"].lower() == "upgrade"
    assert not {"sec-websocket-protocol", "sec-websocket-extensions"} & headers.keys()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec_WebSocket_Version": "12"}, 426),  # Sections 4.2.2 and 4.4
        ({"Sec_WebSocket_Version": "13, 13"}, 426),
        ({"Sec_WebSocket_Version": None}, 426),
        ({"Sec_WebSocket_Key": None}, 400),  # Section 4.2.1, as are the following ones
        ({"Sec_WebSocket_Key": KEY[:-4]}, 400),
        ({"Sec_WebSocket_Key": "=" * 24}, 400),
        ({"Upgrade": "h2c"}, 426),
        ({"Connection": "close"}, 426),
    ],
)
async def test_a_handshake_that_is_not_sound_is_refused(
    server: RunningServer, headers: dict[str, str | None], status: int
) -> None:
    async with wired(server.http) as wire:
        await wire.say(handshake(**headers))
        found, answered = await wire.answer()
    assert found == status
    if "Sec_WebSocket_Version" in headers:
        assert answered["sec-websocket-version"] == "13"


@pytest.mark.parametrize("offered", [None, "permessage-deflate"])
async def test_compressed_frames_are_refused(server: RunningServer, offered: str | None) -> None:
    async with greeted(server.http, Sec_WebSocket_Extensions=offered) as wire:
        await wire.say(frame(TEXT, ask(), reserved=4))
        assert [told(each) for each in await wire.rest()] == [PROTOCOL_ERROR]
