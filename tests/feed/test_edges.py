"""Every field of every action with values at the edges: the sender receives an error or an answer,
and other clients are not affected.

The fields come from `docs/asyncapi.yaml`, so that a new one is tested as soon as it is described.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import httpx
import jsonschema
import msgpack
import pytest
import yaml
from msgspec.structs import replace
from redis.asyncio import Redis

from feed.fanout.hub import Hub
from feed.server.engine import Engine
from tests.builders import T0, trade, trades
from tests.conftest import RunningServer, running_server, until
from tests.feed.replay.test_feed_replays import playing
from tests.feed.server.test_session import SessionClient
from tests.recorded import Recorded
from tests.talk import Talk, talking
from tests.tickcast.client.tapes import write_tape
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.wire.actions import ReplayCommand
from tickcast.wire.encoding import Encoding

SCHEMAS: Final[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).resolve().parents[2] / "docs" / "asyncapi.yaml").read_text("utf-8")
)["components"]["schemas"]

Message = dict[str, Any]
_CHECKED_AFTER: Final = 100
"""Messages sent between two checks of the other clients."""
_REFUSED_PER_SENT: Final = 12
"""Of so many messages that the parser refuses, the server receives one."""

NUMBERS: Final[list[Any]] = [
    0, 1, -1, 2**31, 2**53 - 1, 2**53, 2**63 - 512, 2**63 - 1, -(2**63), -(2**63) - 1, 2**63,
    2**64 - 1, 2**64, 10**400, -(10**400), -0.0, 0.5, 5e-324, 1e308, math.nan, math.inf, -math.inf,
]  # fmt: skip
OTHERS: Final[list[Any]] = [
    "", "*", "A", "\0", "\ud800", "NaN", "1e400", "max", "+999999999d", "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999Z", "1677-09-21T00:12:43.145224192Z", "9" * 5000, "x" * 40_000,
    None, True, False, [], {}, [[]], [None], ["ES", 5], {"a": {}}, {"": 0}, {"epoch": "e"},
    [[[[[[[[]]]]]]]], {"a": {"a": {"a": {"a": []}}}},
]  # fmt: skip
ONLY_MSGPACK: Final[list[Any]] = [
    b"", b"ES", {5: 6}, {None: 1}, {True: []}, {b"x": 1}, msgpack.ExtType(5, b"x"),
    msgpack.Timestamp(0), msgpack.Timestamp(2**63 - 1, 999_999_999), msgpack.Timestamp(-(2**62)),
    msgpack.Timestamp(253_402_300_799, 999_999_999), msgpack.Timestamp(9_223_372_036, 854_775_807),
]  # fmt: skip

_STEERED: Final[dict[ReplayCommand, Message]] = {
    ReplayCommand.SEEK: {"position": T0},
    ReplayCommand.SPEED: {"speed": 2},
}

# A valid example of each action, before one of its fields is replaced.
SOUND: Final[dict[str, list[Message]]] = {
    "auth": [{"action": "auth", "key": "k", "secret": "s"}, {"action": "auth", "token": "t"}],
    "subscribe": [
        {"action": "subscribe", "trades": ["ES"]},
        {"action": "subscribe", "trades": ["ES"], "resume": {"epoch": "e", "trades": {"ES": 1}}},
        {"action": "subscribe", "trades": ["*"], "resume": [{"epoch": "", "trades": {"*": 0}}]},
    ],
    "unsubscribe": [{"action": "unsubscribe", "trades": ["ES"]}],
    "list": [{"action": "list"}],
    "ping": [{"action": "ping"}],
    "publish": [{"action": "publish", "ticks": [{"T": "t", "S": "ES", "p": 1, "s": 1}]}],
    "configure": [{"action": "configure"}],
    "replay": [{"action": "replay", "id": 9, "tape": "hundred", "trades": ["ES"]}],
    "steer": [
        {"action": verb.value, **more, **place}
        for verb in ReplayCommand
        for place in ({"id": "held"}, {})
        for more in [_STEERED.get(verb, {})]
    ],
}  # fmt: skip


def variants(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each place in a value that can be replaced, and a function that replaces it."""
    yield "", lambda edge: edge
    if isinstance(value, dict):
        for name, inner in value.items():
            for path, put in variants(inner):
                yield f".{name}{path}", lambda edge, n=name, p=put: {**value, n: p(edge)}
            yield (
                f"{{{name}}}",
                lambda edge, n=name: {
                    edge if key == n else key: inner for key, inner in value.items()
                },
            )
    elif isinstance(value, list):
        for path, put in variants(value[0]):
            yield f"[0]{path}", lambda edge, p=put: [p(edge)]


def fields_of(name: str) -> list[str]:
    """Return the fields of an action according to the document; channels count as one of them."""
    schema = SCHEMAS[name]
    return [*schema["properties"], *(["trades"] if "patternProperties" in schema else [])]


def edge_messages(edges: list[Any]) -> Iterator[tuple[str, Message]]:
    """Yield every field of every action with every edge value, and the action's name."""
    for name, bases in SOUND.items():
        for base in bases:
            others = [field for field in base if base[field] != bases[0].get(field)]
            for field in fields_of(name) if base is bases[0] else others:
                for path, put in variants(base.get(field)):
                    for edge in edges:
                        if isinstance(edge, str) or not path.endswith("}"):
                            yield name, {**base, field: put(edge)}


def test_the_table_is_complete() -> None:
    assert set(SOUND) == {
        name for name, each in SCHEMAS.items() if "action" in each.get("properties", {})
    }
    tried = {field for name in SOUND for field in fields_of(name)}
    assert tried >= {"id", "start", "resume", "conflate_ms", "heartbeat_ms", "position", "speed"}


class Sender(Talk):
    """Send malformed and extreme messages, and check the answers."""

    def __init__(self, talk: Talk, packs: bool, engine: Engine) -> None:
        super().__init__(talk.socket)
        self.packs = packs
        self.engine = engine
        self.replays: set[Any] = set()

    async def hear(self, timeout_s: float = 10.0) -> Message:
        message = await super().hear(timeout_s)
        if message["T"] == "replay" and "id" in message:
            (self.replays.discard if message["state"] == "ended" else self.replays.add)(
                message["id"]
            )
        return message

    async def exchange(self, message: Message) -> list[Message]:
        """Send a message and return all answers to it, without ticks and heartbeats."""
        await self.socket.send(self.encode(message))
        await self.say(action="ping", id="over")
        replies: list[Message] = []
        is_over = False
        while not (is_over and replies):
            reply = await self.hear()
            if reply["T"] == "pong" and reply.get("id") == "over":
                is_over = True
            elif reply["T"] not in ("t", "gap", "heartbeat"):
                replies.append(reply)
        return replies

    def encode(self, message: Message) -> str | bytes:
        return msgpack.packb(message) if self.packs else json.dumps(message)

    def can_write(self, message: Message) -> bool:
        """Return whether the encoding can represent everything in a message."""
        try:
            self.encode(message)
        except (TypeError, ValueError, OverflowError):
            return False
        return True

    async def forget(self, message: Message) -> None:
        """Undo an accepted action."""
        if message["action"] == "subscribe":
            await until(lambda: not len(self.engine.backfill))
            await self.exchange({"action": "unsubscribe", "trades": message["trades"]})
        elif message["action"] == "configure":
            await self.exchange({"action": "configure", "heartbeat_ms": 0, "replay": False})

    async def tidy(self) -> None:
        """Stop all replays except the one that is to be controlled, and start it if needed."""
        for id_ in list(self.replays - {"held"}):
            await self.exchange({"action": "replay.stop", "id": id_})
        if "held" not in self.replays:
            play = {"action": "replay", "id": "held", "tape": "hundred", "trades": ["ES"]}
            await self.exchange(play)


def accepts(replies: list[Message]) -> bool:
    return all(reply["T"] != "error" for reply in replies)


def check_codes(message: Message, replies: list[Message]) -> None:
    for reply in replies:
        assert reply.get("code") in (None, 400, 409, 410, 416), (message, reply)


class Rehearsal:
    """A session without a server, which shows what is refused before the server would act on it."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._client = SessionClient(
            Hub(), Encoding.MSGPACK if sender.packs else Encoding.JSON, extended=True
        )

    def refuses(self, message: Message) -> bool:
        request = self._client.session.handle_message(self._sender.encode(message), 0.0)
        replies = self._client.sink.take()
        check_codes(message, replies)
        assert (request is None) == bool(replies), (message, replies)
        return not accepts(replies)


class Bystander:
    """Clients that make only ordinary requests."""

    def __init__(
        self, talk: Talk, server: RunningServer, publisher: FeedPublisher, seq: int
    ) -> None:
        self._talk = talk
        self._server = server
        self._publisher = publisher
        self._seq = seq

    async def check(self) -> None:
        """Check that live ticks and history arrive, and that the server is ready."""
        self._seq += 1
        await self._publisher.publish([trade()])
        await self._publisher.flush()
        assert [tick["seq"] for tick in await self._talk.ticks(1)] == [self._seq]
        async with talking(self._server.stream) as other:
            await other.ask(action="subscribe", trades=["ES"], start=int(T0))
            found = [tick["seq"] for tick in await other.ticks(self._seq)]
        assert found == list(range(1, self._seq + 1))
        async with httpx.AsyncClient(base_url=self._server.http) as http:
            assert (await http.get("/ready")).json() == {"status": "ready"}


async def try_all(
    senders: Mapping[bool, Sender], messages: Iterable[tuple[str, Message]], bystander: Bystander
) -> int:
    """Try every message, and send all that may be accepted and a sample of the others.

    Return how many the encoding could represent.

    Args:
        senders: by whether they control the replay of their feed.
    """
    rehearsal = Rehearsal(senders[False])
    count = sent = refused = 0
    for name, message in messages:
        sender = senders[name == "steer" and "id" not in message]
        if not sender.can_write(message):
            continue
        count += 1
        if rehearsal.refuses(message):
            refused += 1
            if refused % _REFUSED_PER_SENT:
                continue
        sent += 1
        await sender.tidy()
        replies = await sender.exchange(message)
        check_codes(message, replies)
        if accepts(replies):
            assert validator(name).is_valid(as_document(message)), (message, replies)
            await sender.forget(message)
        if sent % _CHECKED_AFTER == 0:
            await bystander.check()
    return count


def as_document(message: Message) -> Message:
    """Convert a message to the form that the document describes: JSON, with times as text."""
    return {
        name: str(value) if isinstance(value, msgpack.Timestamp) else value
        for name, value in message.items()
    }


@cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": SCHEMAS}}
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("packs", [False, True], ids=["json", "msgpack"])
async def test_edges_are_the_trouble_of_their_sender(
    settings: Settings,
    redis_url: str,
    redis: Redis,
    publisher: FeedPublisher,
    tmp_path: Path,
    packs: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_tape(tmp_path)
    await publisher.publish(trades(20))
    await publisher.flush()
    source = Recorded(0, 1000, symbol="REPLAYED")
    encoding = "msgpack" if packs else "json"
    async with (
        running_server(replace(settings, tapes=str(tmp_path)), redis_url) as server,
        FeedPublisher(redis, "played", settings, waits=True) as player,
        playing(redis, player, source, feed="played"),
        talking(f"{server.stream}?encoding={encoding}") as one,
        talking(f"{server.ws}/v2/played?encoding={encoding}") as another,
        talking(server.stream) as third,
    ):
        await third.ask(action="subscribe", trades=["ES"])
        engine: Engine = server.app_state["engine"]
        senders = {False: Sender(one, packs, engine), True: Sender(another, packs, engine)}
        bystander = Bystander(third, server, publisher, 20)
        edges = NUMBERS + OTHERS + (ONLY_MSGPACK if packs else [])
        assert await try_all(senders, edge_messages(edges), bystander) > 1000
        await bystander.check()
    assert "Traceback" not in caplog.text


PARAMETERS: Final = {
    "/symbols": ("feed", "limit", "after"),
    "/snapshot": ("symbols", "feed", "limit", "after"),
    "/stream": ("encoding",),
    "/v2/live": ("encoding",),
}


async def test_edges_in_addresses(
    server: RunningServer, publisher: FeedPublisher, caplog: pytest.LogCaptureFixture
) -> None:
    await publisher.publish(trades(3))
    await publisher.flush()
    values = [str(each) for each in [*NUMBERS, *OTHERS] if each != "\ud800"]
    async with httpx.AsyncClient(base_url=server.http) as http:
        for path, names in PARAMETERS.items():
            for name in names:
                for value in values:
                    parameters = {"symbols": "ES", name: value[:20_000]}
                    answer = await http.get(path, params=parameters)
                    assert answer.status_code in (200, 400, 404, 414, 426, 431), (path, parameters)
        found = (await http.get("/snapshot?symbols=ES")).json()
        assert [tick["seq"] for tick in found] == [3]
        assert (await http.get("/ready")).json() == {"status": "ready"}
    assert "Traceback" not in caplog.text
