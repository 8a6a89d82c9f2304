"""`docs/asyncapi.yaml`, compared with the code's tables and with real conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from msgspec.structs import replace
from redis.asyncio import Redis

from tests.builders import T0, bar, quote, trade, trades
from tests.conftest import running_server
from tests.fuzz.seeds import ACTIONS
from tests.talk import Talk, decode, talking
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.tapes import TapeWriter
from tickcast.wire import messages as protocol
from tickcast.wire.actions import ReplayCommand, SlowPolicy
from tickcast.wire.encoding import Encoding, encode, field_names
from tickcast.wire.errors import Fault, InvalidAction
from tickcast.wire.parsing import ID_MAX
from tickcast.wire.sequence import GapReason
from tickcast.wire.ticks import CHANNELS, Bar, Quote, StreamKey, Timeframe, Trade
from tickcast.wire.times import Time

PAGE = Path(__file__).resolve().parents[1] / "docs" / "asyncapi.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(PAGE.read_text("utf-8"))
SCHEMAS: dict[str, dict[str, Any]] = DOCUMENT["components"]["schemas"]


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": {"schemas": SCHEMAS}}
    )


FROM_SERVER = validator("toClient")
SAID_BY = {
    "auth": "auth", "subscribe": "subscribe", "unsubscribe": "unsubscribe", "list": "list",
    "ping": "ping", "publish": "publish", "configure": "configure", "replay": "replay",
} | {verb.value: "steer" for verb in ReplayCommand}  # fmt: skip


class Recorded(Talk):
    """A conversation in which every message is checked against the document."""

    def __init__(self, talk: Talk) -> None:
        super().__init__(talk.socket)
        self.heard: set[str] = set()

    async def say(self, _binary: bool = False, **fields: Any) -> None:
        validator(SAID_BY[fields["action"]]).validate(fields)
        await super().say(_binary, **fields)

    async def hear(self, timeout_s: float = 10.0) -> dict[str, Any]:
        message = await super().hear(timeout_s)
        FROM_SERVER.validate([message])
        self.heard.add(message["T"])
        return message


def test_it_refers_to_nothing_that_is_not_there() -> None:
    def refer(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                found = DOCUMENT
                for part in node["$ref"].removeprefix("#/").split("/"):
                    found = found[part]
            for each in node.values():
                refer(each)
        elif isinstance(node, list):
            for each in node:
                refer(each)

    refer(DOCUMENT)
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_its_words_are_those_of_the_code() -> None:
    for name, kind in (("t", Trade), ("q", Quote), ("b", Bar)):
        assert set(SCHEMAS[name]["properties"]) == field_names(kind) | {"tr", "tw", "rp"}
    assert set(SCHEMAS["error"]["properties"]["code"]["enum"]) == {each.code for each in Fault}
    assert SCHEMAS["channel"]["enum"] == list(CHANNELS)
    assert SCHEMAS["timeframe"]["enum"] == list(get_args(Timeframe))
    assert SCHEMAS["slow"]["enum"] == [each.value for each in SlowPolicy]
    assert SCHEMAS["gap"]["properties"]["reason"]["enum"] == [each.value for each in GapReason]
    assert set(SCHEMAS["steer"]["properties"]["action"]["enum"]) == {
        each.value for each in ReplayCommand
    }
    assert SCHEMAS["id"]["oneOf"][1]["maxLength"] == ID_MAX


def test_what_the_parser_takes_fits_it() -> None:
    """The fuzzer's seeds contain messages of every kind; some of them are invalid on purpose."""
    from tickcast.wire.parsing import parse_action  # noqa: PLC0415

    good = 0
    for seed in ACTIONS:
        try:
            parse_action(seed.decode())
        except (InvalidAction, UnicodeDecodeError):
            continue
        fields = json.loads(seed)
        validator(SAID_BY[fields["action"]]).validate(fields)
        good += 1
    assert good > 10


@pytest.mark.parametrize(
    "message",
    [
        *(protocol.error(fault, "more", 1) for fault in Fault),
        protocol.skipped(StreamKey("live", "trades", "A"), 1, 5, 4),
        protocol.shutdown(100),
        protocol.authenticated("x"),
    ],
    ids=lambda message: message[0]["T"],
)
def test_rare_messages_fit_it(message: list[dict[str, Any]]) -> None:
    FROM_SERVER.validate(decode(encode(message, Encoding.JSON).decode()))


async def test_a_long_conversation_fits_it(
    settings: Settings, redis_url: str, redis: Redis, publisher: FeedPublisher, tmp_path: Path
) -> None:
    writer = TapeWriter(tmp_path / "one.jsonl.zst", "live")
    for tick in trades(3, "ES", 1):
        writer.append_tick(tick)
    writer.close()
    with_tapes = replace(settings, tapes=str(tmp_path))
    await publisher.publish([
        trade(id=1, side="B", venue="X"), quote(bid_venue="X", ask_venue="Y"), bar(), *trades(3)
    ])  # fmt: skip
    await publisher.flush()
    options = {"subprotocols": ["tickcast.v1.json"]}
    async with (
        running_server(with_tapes, redis_url) as server,
        talking(server.stream, **options) as plain,
    ):
        talk = Recorded(plain)
        await talk.ask(action="auth", token="anything", id=1)
        await talk.ask(action="configure", stamps=True, slow="skip", replay=True)
        await talk.ask(action="subscribe", trades=["*"], quotes=["ES"], bars=["E*"],
                       snapshot=True, positions=True, conflate_ms=10, id="x")  # fmt: skip
        await talk.ask(action="subscribe", **{"bars:5s": ["ES"]}, start=T0.rfc3339())
        await publisher.publish([trade(id="x", time=Time(T0 + 1)), quote(), bar()])
        while {"t", "q", "b"} - talk.heard:
            await talk.hear()
        await redis.flushall()
        await publisher.publish([trade()])
        while "gap" not in talk.heard:
            await talk.hear()
        await talk.ask(action="replay", id=9, tape="one", trades=["ES"], speed="max")
        while (await talk.hear()).get("state") != "ended":
            pass
        for action in ({"action": "ping"}, {"action": "list"}, {"action": "replay.pause"}):
            await talk.ask(**action)
        await talk.ask(action="replay.seek", id=9, position=T0.rfc3339())
        await talk.ask(action="unsubscribe", trades=["*"])
        await talk.ask(action="configure", heartbeat_ms=100)
        while "heartbeat" not in talk.heard:
            await talk.hear()
        assert talk.heard == {"t", "q", "b", "heartbeat", "gap", "replay", "pong", "subscription",
                              "success", "configured", "error"}  # fmt: skip
