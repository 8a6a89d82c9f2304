from __future__ import annotations

import pytest

from tickcast.wire import messages
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import Fault
from tickcast.wire.subscriptions import Subscription


def test_replies() -> None:
    held = [
        Subscription("quotes", "B"),
        Subscription("trades", "b"),
        Subscription("trades", "A"),
        Subscription("bars:5s", "A"),
    ]
    (reply,) = messages.subscription(held, "e1", 7)
    assert list(reply.items()) == [
        ("T", "subscription"),
        ("trades", ["A", "b"]),
        ("quotes", ["B"]),
        ("bars", []),
        ("bars:5s", ["A"]),
        ("epoch", "e1"),
        ("id", 7),
    ]
    assert messages.subscription([]) == [
        {"T": "subscription", "trades": [], "quotes": [], "bars": []}
    ]
    assert messages.error(Fault.SYMBOL_LIMIT, id_=7) == [
        {"T": "error", "code": 405, "msg": "symbol limit exceeded", "id": 7}
    ]
    assert messages.error(Fault.INVALID_SYNTAX, "why")[0]["msg"] == "invalid syntax: why"


@pytest.mark.parametrize(
    ("offered", "content_type", "query", "expected"),
    [
        ([], "", None, (Encoding.JSON, None)),
        ([], "", "msgpack", (Encoding.MSGPACK, None)),
        ([], "", "json", (Encoding.JSON, None)),
        ([], "", "xml", (Encoding.JSON, None)),
        ([], "application/msgpack", "json", (Encoding.MSGPACK, None)),
        ([], "Application/MsgPack; v=1", None, (Encoding.MSGPACK, None)),
        (["tickcast.v1.json"], "application/msgpack", None, (Encoding.JSON, "tickcast.v1.json")),
        (["x", "tickcast.v1.msgpack", "tickcast.v1.json"], "", "json",
         (Encoding.MSGPACK, "tickcast.v1.msgpack")),
        (["x"], "", None, (Encoding.JSON, None)),
    ],
)  # fmt: skip
def test_the_first_encoding_offered_wins(
    offered: list[str], content_type: str, query: str | None, expected: object
) -> None:
    assert messages.choose_encoding(offered, content_type, query) == expected
