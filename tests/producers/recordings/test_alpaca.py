"""Messages and answers of Alpaca's services, from the examples in its documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from producers.recordings.json_lines import JsonLinesRecording, parse_json
from tests.builders import trade
from tickcast.wire.errors import InvalidTick
from tickcast.wire.ticks import Bar, Quote
from tickcast.wire.times import Time

TIME = Time.parse("2022-01-20T09:00:00.008307456Z")
TRADE: dict[str, Any] = {
    "t": "2022-01-20T09:00:00.008307456Z", "x": "K", "p": 165.46, "s": 200, "c": ["@", "T", "X"],
    "i": 1, "z": "C",
}  # fmt: skip
QUOTE: dict[str, Any] = {
    "t": "2022-01-20T09:00:00.008307456Z", "ax": "Q", "ap": 165.5, "as": 3, "bx": "V",
    "bp": 165.4, "bs": 2, "c": ["R"], "z": "C",
}  # fmt: skip
BAR: dict[str, Any] = {
    "t": "2022-01-20T09:00:00.008307456Z", "o": 165.2, "h": 165.9, "l": 165.1, "c": 165.5,
    "v": 2800, "n": 12, "vw": 165.43,
}  # fmt: skip
A_TRADE = trade("AAPL", id=1, venue="K", price=165.46, size=200, time=TIME)
A_QUOTE = Quote(
    symbol="AAPL", bid_venue="V", bid_price=165.4, bid_size=2, ask_venue="Q", ask_price=165.5,
    ask_size=3, time=TIME,
)  # fmt: skip
A_BAR = Bar(
    symbol="AAPL", open=165.2, high=165.9, low=165.1, close=165.5, volume=2800, trade_count=12,
    vwap=165.43, time=TIME,
)  # fmt: skip


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"trades": [TRADE, TRADE], "symbol": "AAPL", "next_page_token": "x"}, [A_TRADE] * 2),
        ({"quotes": {"AAPL": [QUOTE], "MSFT": []}, "next_page_token": None}, [A_QUOTE]),
        ({"bars": {"AAPL": [BAR]}, "currency": "USD"}, [A_BAR]),
        ({"bars": None, "symbol": "AAPL", "next_page_token": None}, []),
        ({"trade": TRADE, "symbol": "AAPL"}, [A_TRADE]),
        ({"quotes": {"AAPL": QUOTE}}, [A_QUOTE]),
        ({"trades": {}}, []),
        # alpaca-py with raw_data=True.
        ({"AAPL": [TRADE, QUOTE, BAR], "MSFT": []}, [A_TRADE, A_QUOTE, A_BAR]),
        # Messages of a stream.
        ([{"T": "success", "msg": "connected"}, {"T": "t", "S": "AAPL", **TRADE}], [A_TRADE]),
        ([{"T": "b", "S": "AAPL", **BAR}, {"T": "d", "S": "AAPL", **BAR}], [A_BAR]),
        ([{"T": "c", "S": "AAPL", "x": "K", "oi": 1, "op": 1}], []),
    ],
)
def test_answers_become_ticks(content: Any, expected: list[Any]) -> None:
    left_out: set[str] = set()
    assert parse_json(json.dumps(content).encode(), None, left_out) == expected
    assert left_out <= {"c", "z", "messages c", "messages d"}
    assert bool(left_out) == any(text in json.dumps(content) for text in ('"z"', '"d"', '"oi"'))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"trades": [TRADE]}, "trades: 'None' is not a symbol"),
        ({"trades": {"A B": [TRADE]}}, "trades: 'A B' is not a symbol"),
        ({"trades": {"AAPL": [TRADE, 1]}}, "trades of AAPL, number 2: not a JSON object"),
        ({"trades": {"AAPL": [{**TRADE, "p": "x"}]}}, "trades of AAPL, number 1: Expected `float`"),
        ({"trades": {"AAPL": [{"p": 1, "s": 1}]}}, "trades of AAPL, number 1: no time t"),
        ({"AAPL": [{"t": 1}]}, "ticks of AAPL, number 1: neither a trade, a quote nor a bar"),
        ({"AAPL": {"latestTrade": TRADE}}, "neither a trade, a quote nor a bar"),
        ({"message": "forbidden."}, 'T must be "t"'),
        ({"p": 1, "s": 1}, 'T must be "t"'),
        ({}, 'T must be "t"'),
    ],
)
def test_errors_name_the_place(content: Any, message: str) -> None:
    with pytest.raises(InvalidTick, match=message):
        parse_json(json.dumps(content).encode(), None, set())


def test_a_file_of_an_answer_is_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text(json.dumps({"trades": {"AAPL": [TRADE]}}, indent=2))
    assert list(JsonLinesRecording(path, lambda *row: pytest.fail(str(row)))) == [A_TRADE]
