"""A load client's frames, handshake and messages up to the subscription."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from clients.load.addresses import parse_url
from clients.load.client import LoadClient, PoolState, SubscribeDialogue
from clients.load.payload import PayloadReader
from clients.load.plan import Plan, PlannedClient
from tests.clients.load.scripted_server import frame
from tickcast.wire.encoding import Encoding, build_frame
from tickcast.wire.errors import ConnectionFailed

PLAN = Plan(url="ws://127.0.0.1:8000/stream", headers=(("A", "b"),), heartbeat_ms=0)


class RecordedTransport:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


class RecordedPayloads:
    """Used in place of a `PayloadReader`."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def summarize(self, payload: bytes, shared: bool) -> list[Any]:
        self.payloads.append(payload)
        return []


class Connection:
    """A client and the server at the other end of its socket."""

    def __init__(self) -> None:
        self.state = PoolState(PLAN, parse_url(PLAN.url), lambda client: None)
        planned = PlannedClient(0, False, False, 0.0)
        self.client = LoadClient(self.state, planned, 0, ("A",), {}, False)
        self.transport = RecordedTransport()
        self.client.connection_made(cast("asyncio.BaseTransport", self.transport))
        self.server = ServerProtocol(subprotocols=[Subprotocol(PLAN.subprotocol)])
        self.server.receive_data(self.transport.written)
        (request,) = self.server.events_received()
        assert isinstance(request, Request)
        self.request = request

    def accept(self) -> None:
        self.server.send_response(self.server.accept(self.request))
        reply = b"".join(self.server.data_to_send())
        self.client.data_received(reply[:50])
        self.client.data_received(reply[50:])
        self.transport.written = b""

    def record_payloads(self) -> list[bytes]:
        reader = RecordedPayloads()
        self.state.reader = cast("PayloadReader", reader)
        return reader.payloads


def payloads_in(chunks: list[bytes]) -> tuple[list[bytes], int]:
    """Return the messages that a client reads from chunks, and its close code."""

    async def read() -> tuple[list[bytes], int]:
        connection = Connection()
        connection.accept()
        payloads = connection.record_payloads()
        for chunk in chunks:
            connection.client.data_received(chunk)
        return payloads, connection.client.close_code

    return asyncio.run(read())


@given(st.lists(st.binary(max_size=300)), st.lists(st.integers(1, 200)), st.booleans())
def test_frames_are_complete_however_they_are_split(
    payloads: list[bytes], cuts: list[int], long: bool
) -> None:
    if long:
        payloads.append(bytes(70_000))
    data = b"".join(build_frame(payload, Encoding.MSGPACK) for payload in payloads)
    sizes = itertools.cycle(cuts or [1000])
    chunks = []
    while data:
        step = next(sizes) * (50 if long else 1)
        chunks.append(data[:step])
        data = data[step:]
    assert payloads_in(chunks) == (payloads, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\x80abcd", b"\xc1\x00", b"\x83\x00", b"\x80\x00", b"\x01\x00\x81\x00",
        b"\x09\x00", b"\x89\x7e\x00\x7e" + bytes(126), b"\x81\x7f" + bytes((255,)) * 8,
    ],
)  # fmt: skip
def test_invalid_frame_closes_the_connection(data: bytes) -> None:
    assert payloads_in([b"\x81\x02ok" + data + b"\x81\x04late"]) == ([b"ok"], 1002)


async def test_client_masks_its_frames() -> None:
    connection = Connection()
    connection.accept()
    connection.client.data_received(frame({"T": "success", "msg": "connected"}))
    assert connection.transport.written[1] & 0x80
    connection.server.receive_data(connection.transport.written)
    (event,) = connection.server.events_received()
    assert isinstance(event, Frame)
    assert msgspec.json.decode(event.data) == {"action": "configure", "stamps": True}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"HTTP/1.1 503 Full\r\n\r\n", "HTTP 503"),
        (b"SSH-2.0-x\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 101 X\r\nSec-WebSocket-Accept: no\r\n\r\n", "does not speak WebSocket"),
        (b"x" * 20_000, "never ends"),
    ],
)
async def test_failed_handshake_is_explained(reply: bytes, reason: str) -> None:
    connection = Connection()
    assert connection.request.headers["A"] == "b"
    connection.client.data_received(reply)
    with pytest.raises(ConnectionFailed, match=reason):
        await connection.client.subscribed
    assert connection.transport.closed


def test_parts_of_a_url() -> None:
    uri = parse_url("wss://[::1]:9000/v2/sim?encoding=json")
    assert (uri.host, uri.port, uri.secure) == ("::1", 9000, True)
    assert uri.resource_name == "/v2/sim?encoding=json"
    assert parse_url("ws://x").port == 80


def dialogue(**options: Any) -> SubscribeDialogue:
    plan = msgspec.structs.replace(PLAN, **options)
    found = SubscribeDialogue(plan, ("A",))
    found.extended = True
    return found


CONNECTED = {"T": "success", "msg": "connected"}
SUBSCRIBE = {"action": "subscribe", "trades": ["A"]}


def test_granted_extensions_are_recorded() -> None:
    client = dialogue(auth={"key": "k", "secret": "s"}, conflate_ms=100)
    assert client.answer(CONNECTED) == {"action": "auth", "key": "k", "secret": "s"}
    configure = client.answer({"T": "success", "msg": "authenticated"})
    assert configure == {"action": "configure", "stamps": True}
    subscribe = client.answer({"T": "configured", "stamps": True})
    assert subscribe == {**SUBSCRIBE, "conflate_ms": 100}
    assert not client.ready
    assert client.answer({"T": "subscription", "trades": ["A"]}) is None
    assert client.ready
    assert client.granted == {"stamps", "conflate_ms"}


def test_refused_extensions_are_left_out() -> None:
    refusal = {"T": "error", "code": 410, "msg": "invalid action for this feed"}
    client = dialogue(conflate_ms=100)
    client.answer(CONNECTED)
    assert client.answer(refusal) == {**SUBSCRIBE, "conflate_ms": 100}
    assert client.answer(refusal) == SUBSCRIBE
    assert client.granted == set()
    with pytest.raises(ConnectionFailed, match="410"):
        client.answer(refusal)


def test_other_errors_refuse_the_client() -> None:
    client = dialogue(auth={"token": "x"})
    client.answer(CONNECTED)
    with pytest.raises(ConnectionFailed, match="402 auth failed"):
        client.answer({"T": "error", "code": 402, "msg": "auth failed"})
