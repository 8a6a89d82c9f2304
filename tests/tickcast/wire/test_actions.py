from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickcast.wire.actions import (
    Auth,
    BearerToken,
    Configure,
    DeliveryOptions,
    KeyAndSecret,
    ListSubscriptions,
    Ping,
    SlowPolicy,
    Subscribe,
    Unsubscribe,
    uses_extension,
)
from tickcast.wire.errors import Fault, InvalidAction
from tickcast.wire.parsing import parse_action
from tickcast.wire.positions import StreamPosition
from tickcast.wire.subscriptions import Subscription
from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import Time

BOTH = pytest.mark.parametrize("pack", [json.dumps, msgpack.packb])
A = frozenset({Subscription("trades", "A")})


@BOTH
@pytest.mark.parametrize(
    ("message", "action"),
    [
        ({"action": "auth", "key": "k", "secret": "s"}, Auth(KeyAndSecret("k", "s"))),
        ({"action": "auth", "token": "t", "id": 1}, Auth(BearerToken("t"), 1)),
        ({"action": "list"}, ListSubscriptions()),
        ({"action": "ping", "id": "a" * 64}, Ping("a" * 64)),
        ({"action": "ping", "id": 2**64 - 1}, Ping(2**64 - 1)),
        ({"action": "ping", "id": -(2**63)}, Ping(-(2**63))),
        (
            {"action": "subscribe", "trades": ["AAPL"], "quotes": ["*", "BTC-*"], "id": -5},
            Subscribe(
                frozenset(
                    {
                        Subscription("trades", "AAPL"),
                        Subscription("quotes", "*"),
                        Subscription("quotes", "BTC-*"),
                    }
                ),
                -5,
            ),
        ),
        (
            {"action": "subscribe", "bars:5s": ["A"], "snapshot": True},
            Subscribe(frozenset({Subscription("bars:5s", "A")}), snapshot=True),
        ),
        (
            {"action": "unsubscribe", "bars": ["A", "A"]},
            Unsubscribe(frozenset({Subscription("bars", "A")})),
        ),
        ({"action": "subscribe", "trades": []}, Subscribe(frozenset())),
        (
            {"action": "subscribe", "trades": ["A"], "start": "1970-01-01T00:00:00.000000001Z"},
            Subscribe(A, start=Time(1)),
        ),
        ({"action": "subscribe", "trades": ["A"], "start": 0}, Subscribe(A, start=Time(0))),
        ({"action": "subscribe", "trades": ["A"], "start": -1}, Subscribe(A, start=Time(-1))),
        ({"action": "subscribe", "trades": ["A"], "start": None}, Subscribe(A)),
        ({"action": "subscribe", "trades": ["A"], "resume": None}, Subscribe(A)),
        (
            {"action": "subscribe", "trades": ["A"], "start": None, "snapshot": True},
            Subscribe(A, snapshot=True),
        ),
        (
            {"action": "subscribe", "trades": ["A"], "snapshot": True, "positions": True},
            Subscribe(A, snapshot=True, positions=True),
        ),
        (
            {"action": "subscribe", "trades": ["A"], "conflate_ms": 245, "slow": "close"},
            Subscribe(A, options=DeliveryOptions(250, SlowPolicy.CLOSE)),
        ),
    ],
)
def test_good_messages(pack: Any, message: dict[str, Any], action: object) -> None:
    assert parse_action(pack(message)) == action


@BOTH
@pytest.mark.parametrize(
    ("message", "fault", "words"),
    [
        ([], Fault.INVALID_SYNTAX, "one map"),
        ("ping", Fault.INVALID_SYNTAX, "one map"),
        ({}, Fault.INVALID_SYNTAX, "names its action"),
        ({"action": 5}, Fault.INVALID_SYNTAX, "names its action"),
        ({"action": "dance"}, Fault.INVALID_SYNTAX, "unknown action 'dance'"),
        ({"action": "ping", "x": 1}, Fault.INVALID_SYNTAX, "unknown key 'x'"),
        ({"action": "ping", "id": 1.5}, Fault.INVALID_SYNTAX, "id is"),
        ({"action": "ping", "id": True}, Fault.INVALID_SYNTAX, "id is"),
        ({"action": "ping", "id": None}, Fault.INVALID_SYNTAX, "id is"),
        ({"action": "ping", "id": "a" * 65}, Fault.INVALID_SYNTAX, "id is"),
        ({"action": "ping", "id": [1]}, Fault.INVALID_SYNTAX, "id is"),
        ({"action": "auth"}, Fault.INVALID_SYNTAX, "a key and a secret"),
        ({"action": "auth", "key": "k"}, Fault.INVALID_SYNTAX, "a key and a secret"),
        ({"action": "auth", "key": 1, "secret": "s"}, Fault.INVALID_SYNTAX, "strings"),
        ({"action": "subscribe"}, Fault.INVALID_SYNTAX, "at least one channel"),
        ({"action": "subscribe", "trades": "AAPL"}, Fault.INVALID_SYNTAX, "a list of symbols"),
        ({"action": "subscribe", "trades": [1]}, Fault.INVALID_SYNTAX, "not a symbol"),
        ({"action": "subscribe", "trades": ["A B"]}, Fault.INVALID_SYNTAX, "not a symbol"),
        ({"action": "subscribe", "trades": ["A\r\nB"]}, Fault.INVALID_SYNTAX, "not a symbol"),
        ({"action": "subscribe", "trades": ["A?"]}, Fault.INVALID_SYNTAX, "not a symbol"),
        ({"action": "subscribe", "trades": [""]}, Fault.INVALID_SYNTAX, "not a symbol"),
        ({"action": "subscribe", "bars:7m": ["A"]}, Fault.INVALID_SYNTAX, "unknown key 'bars:7m'"),
        ({"action": "subscribe", "trades": ["A"], "snapshot": 1}, Fault.INVALID_SYNTAX, "snapshot"),
        ({"action": "subscribe", "news": ["*"]}, Fault.INVALID_ACTION, "no channel news"),
        ({"action": "subscribe", "trades": ["A"], "start": "x"}, Fault.INVALID_SYNTAX, "start is"),
        ({"action": "subscribe", "trades": ["A"], "start": 1.5}, Fault.INVALID_SYNTAX, "start is"),
        ({"action": "subscribe", "trades": ["A"], "start": 2**63}, Fault.INVALID_SYNTAX, "start"),
        (
            {"action": "subscribe", "trades": ["A"], "start": 1, "snapshot": True},
            Fault.INVALID_SYNTAX,
            "snapshot and start exclude each other",
        ),
        ({"action": "subscribe", "trades": ["A"], "positions": 1}, Fault.INVALID_SYNTAX, "true or"),
        ({"action": "subscribe", "trades": ["A"], "positions": None}, Fault.INVALID_SYNTAX, "true"),
        ({"action": "subscribe", "trades": ["A"], "start": True}, Fault.INVALID_SYNTAX, "start is"),
        ({"action": "subscribe", "start": 1}, Fault.INVALID_SYNTAX, "at least one channel"),
        ({"action": "subscribe", "resume": {}}, Fault.INVALID_SYNTAX, "at least one channel"),
        (
            {"action": "subscribe", "trades": ["A"], "resume": 5},
            Fault.INVALID_SYNTAX,
            "resume: it is",
        ),
        (
            {"action": "subscribe", "trades": ["A"], "resume": {"epoch": "e", "quotes": {"A": 1}}},
            Fault.INVALID_SYNTAX,
            "does not subscribe to quotes A",
        ),
        (
            {"action": "unsubscribe", "trades": ["A"], "start": 1},
            Fault.INVALID_SYNTAX,
            "unknown key 'start'",
        ),
        (
            {"action": "configure", "positions": True},
            Fault.INVALID_SYNTAX,
            "unknown key 'positions'",
        ),
        ({"action": "subscribe", "trades": ["A"], "slow": "x"}, Fault.INVALID_SYNTAX, "slow is"),
        ({"action": "subscribe", "trades": ["A"], "slow": None}, Fault.INVALID_SYNTAX, "slow is"),
        ({"action": "subscribe", "trades": ["A"], "slow": []}, Fault.INVALID_SYNTAX, "slow is"),
        (
            {"action": "subscribe", "trades": ["A"], "conflate_ms": -1},
            Fault.INVALID_SYNTAX,
            "at least 0",
        ),
        (
            {"action": "subscribe", "trades": ["A"], "conflate_ms": 0.5},
            Fault.INVALID_SYNTAX,
            "at least 0",
        ),
        ({"action": "configure", "heartbeat_ms": 99}, Fault.INVALID_SYNTAX, "100 to 60000"),
        ({"action": "configure", "heartbeat_ms": True}, Fault.INVALID_SYNTAX, "100 to 60000"),
        ({"action": "configure", "stamps": 1}, Fault.INVALID_SYNTAX, "stamps is"),
        ({"action": "configure", "beat": 1}, Fault.INVALID_SYNTAX, "unknown key 'beat'"),
        ({"action": "configure", "replay": 1}, Fault.INVALID_SYNTAX, "replay is"),
        ({"action": "replay.stop"}, Fault.INVALID_SYNTAX, "id"),
        ({"action": "replay.pause", "id": 9, "tape": "x"}, Fault.INVALID_SYNTAX, "tape"),
        ({"action": "replay.rewind", "id": 9}, Fault.INVALID_SYNTAX, "replay.seek"),
        ({"action": "replay.seek", "id": 9}, Fault.INVALID_SYNTAX, "position"),
        ({"action": "replay.speed", "id": 9}, Fault.INVALID_SYNTAX, "speed"),
        ({"action": "replay.speed", "id": 9, "speed": 20_000}, Fault.INVALID_SYNTAX, "10000"),
        ({"action": "replay", "id": 9, "trades": ["A"]}, Fault.INVALID_SYNTAX, "tape"),
        ({"action": "replay", "id": 9, "tape": "t"}, Fault.INVALID_SYNTAX, "channel"),
    ],
)
def test_bad_messages(pack: Any, message: Any, fault: Fault, words: str) -> None:
    with pytest.raises(InvalidAction, match=words) as caught:
        parse_action(pack(message))
    assert caught.value.fault is fault


@BOTH
def test_resume_and_start_go_together(pack: Any) -> None:
    action = parse_action(
        pack(
            {
                "action": "subscribe",
                "trades": ["A", "B"],
                "start": 5,
                "resume": [{"epoch": "e1", "trades": {"A": 7}}],
            }
        )
    )
    assert isinstance(action, Subscribe)
    assert action.start == Time(5)
    assert action.resume.match(StreamKey("live", "trades", "A")) == StreamPosition("e1", 7)
    assert action.resume.match(StreamKey("live", "trades", "B")) is None


def test_start_as_a_timestamp_of_messagepack() -> None:
    start = msgpack.Timestamp(1, 2000)
    action = parse_action(msgpack.packb({"action": "subscribe", "trades": ["A"], "start": start}))
    assert action == Subscribe(A, start=Time(1_000_002_000))


@pytest.mark.parametrize(
    ("fields", "extended"),
    [
        ({"action": "auth", "token": "t"}, False),
        ({"action": "unsubscribe", "trades": ["A"]}, False),
        ({"action": "unsubscribe", "trades": ["A"], "id": 0}, True),
        ({"action": "list"}, True),
        ({"action": "ping"}, True),
        ({"action": "configure"}, True),
        ({"action": "subscribe", "trades": ["*"]}, False),
        ({"action": "subscribe", "bars:5s": ["A-*"]}, False),
        ({"action": "subscribe", "trades": ["A"], "snapshot": False}, False),
        ({"action": "subscribe", "trades": ["A"], "positions": False}, False),
        ({"action": "subscribe", "trades": ["A"], "start": None, "resume": None}, False),
        ({"action": "subscribe", "trades": ["A"], "resume": []}, False),
        ({"action": "subscribe", "trades": ["A"], "snapshot": True}, True),
        ({"action": "subscribe", "trades": ["A"], "positions": True}, True),
        ({"action": "subscribe", "trades": ["A"], "start": 0}, True),
        (
            {"action": "subscribe", "trades": ["A"], "resume": {"epoch": "e", "trades": {"A": 0}}},
            True,
        ),
        ({"action": "subscribe", "trades": ["A"], "slow": "skip"}, True),
        ({"action": "subscribe", "trades": ["A"], "conflate_ms": 0}, True),
    ],
)
def test_some_actions_show_that_a_client_knows_extensions(
    fields: dict[str, Any], extended: bool
) -> None:
    assert uses_extension(parse_action(json.dumps(fields))) is extended


def test_configure_leaves_missing_options_unset() -> None:
    action = parse_action('{"action":"configure","heartbeat_ms":0,"slow":null,"conflate_ms":1}')
    assert action == Configure(heartbeat_ms=0, slow=None, conflate_ms=10)


def test_an_error_carries_the_id_if_it_is_valid() -> None:
    with pytest.raises(InvalidAction) as caught:
        parse_action('{"action":"dance","id":"x"}')
    assert caught.value.id == "x"


@pytest.mark.parametrize(
    "message",
    [
        "", "{", "nul", '{"action":"ping"}x', '{"a":NaN}', '{"a":1e999}', "[" * 100_000,
        '{"a":' * 100_000, '{"action":"\\ud800"}', "\x00", '{"a":' + "9" * 5000 + "}",
        b"", b"\xc1", b"\x81\xa1a", b"\x91" * 100_000, b"\x81\x01\x02", b"\xdf\xff\xff\xff\xff",
        b"\x81\xa6action\xa4ping\x00",
        b"\x81\xa2\xff\xff\x01", b"\x81\xa1a\xd6\xff\xff\xff\xff\xff",
        b"\x81\xa1a\xc7\x0c\xff" + b"\xff" * 12,
    ],
)  # fmt: skip
def test_garbage_is_invalid_syntax(message: str | bytes) -> None:
    with pytest.raises(InvalidAction) as caught:
        parse_action(message)
    assert caught.value.fault is Fault.INVALID_SYNTAX
    assert caught.value.detail.isascii()
    assert len(caught.value.detail) < 300


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
KEYS = st.sampled_from(
    ["action", "id", "trades", "quotes", "bars", "snapshot", "start", "resume", "epoch", "token"]
) | st.text(max_size=5)
WORDS = st.sampled_from(["subscribe", "unsubscribe", "auth", "list", "ping", "*", "AAPL"])


@given(st.dictionaries(KEYS, WORDS | st.lists(WORDS) | JSON_VALUES))
def test_any_map_is_an_action_or_an_invalid_action(fields: dict[str, Any]) -> None:
    try:
        parse_action(json.dumps(fields))
    except InvalidAction as error:
        assert error.detail.replace("…", "").isascii()
        assert error.detail.isprintable()


@given(st.binary() | st.text())
def test_any_bytes_are_an_action_or_an_invalid_action(message: str | bytes) -> None:
    with pytest.raises(InvalidAction):
        parse_action(message)
