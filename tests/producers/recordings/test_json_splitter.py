from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.recordings.json_splitter import JsonDocument, JsonSplitter

TICKS = st.lists(
    st.dictionaries(
        st.text('ab"[]{},\\ \n', max_size=4),
        st.one_of(st.integers(), st.text('"\\{}[],:\n', max_size=6), st.lists(st.integers())),
        max_size=4,
    ),
    max_size=8,
)


def split(data: bytes, size: int = 1 << 16, bytes_max: int = 1 << 20) -> list[JsonDocument]:
    splitter = JsonSplitter(bytes_max)
    found: list[JsonDocument] = []
    for start in range(0, len(data), size):
        found += splitter.split(data[start : start + size])
    return [*found, *splitter.split(b"")]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"a":1}\n\n{"b":2}', [(1, b'{"a":1}'), (3, b'{"b":2}')]),
        (b'[{"a":1},{"b":2}]\n[]', [(1, b'[{"a":1},{"b":2}]'), (2, b"[]")]),
        (b'[\n{"a":1},\n{"b":2}\n]\n{"c":3}', [(2, b'{"a":1}'), (3, b'{"b":2}'), (5, b'{"c":3}')]),
        (b'[{"a":1}\n,{"b":\n2}]', [(1, b'{"a":1}'), (2, b'{"b":\n2}')]),
        (b'\xef\xbb\xbf[\n  {"a":1}\n]\n', [(2, b'{"a":1}')]),
        (b'{"a":[\n{"b":"]}"}\n]\n}\n{}', [(1, b'{"a":[\n{"b":"]}"}\n]\n}'), (5, b"{}")]),
        (b"nonsense\n]\n1\n", [(1, b"nonsense"), (2, b"]"), (3, b"1")]),
    ],
)
def test_documents_and_their_lines(data: bytes, expected: list[tuple[int, bytes]]) -> None:
    for size in (1, 2, 7, 100):
        assert [(each.line, each.text.strip()) for each in split(data, size)] == expected


@pytest.mark.parametrize(
    ("data", "good"),
    [
        # A line that was cut off, such as by a full disk, with and without a comma at its end.
        (b'{"a":1\n{"b":2}\n{"c":3}\n', [b'{"b":2}', b'{"c":3}']),
        (b'{"a":1,\n{"b":2}\n{"c":3}\n', [b'{"b":2}', b'{"c":3}']),
        (b'{"a":\n{"b":2}\n{"c":3}\n', [b'{"b":2}', b'{"c":3}']),
        (b'{"a":"x\n{"b":2}\n', [b'{"b":2}']),
        # In an array, whose other elements are kept.
        (b'[{"a":1},\n{"b":[\n{"c":2}]},\n{"d":"x\n{"e":3},\n{"f":]},\n{"g":4}]\n{"h":5}',
         [b'{"a":1}', b'{"b":[\n{"c":2}]}', b'{"e":3}', b'{"g":4}', b'{"h":5}']),
        # A bracket that nothing closes, before ordinary lines.
        (b'[\n{"a":1}\n{"b":2}\n{"c":3}\n', [b'{"a":1}', b'{"b":2}', b'{"c":3}']),
    ],
)  # fmt: skip
def test_splitting_continues_after_an_error(data: bytes, good: list[bytes]) -> None:
    for size in (1, 3, 100):
        found = [each.text.strip() for each in split(data, size)]
        assert [text for text in found if is_json(text)] == good
        assert all(each.text or each.error for each in split(data, size))


def test_an_array_without_end_is_reported_after_its_elements() -> None:
    for data in (b'[{"a":1},\n', b'[{"a":1}\n', b"[\n"):
        *_, last = split(data)
        assert last.error == "the array does not end"


def test_long_documents_are_discarded_and_reported_once() -> None:
    long = b'{"a":"%s"}' % (b"x" * 100)
    for data in (
        b'[{"b":1},\n%s,\n{"c":2}]' % long,
        b'{"b":1}\n%s\n{"c":2}' % long,
        b'{"b":1}\n%s\n{"c":2}' % (b"x" * 100),
        b'{"b":1}\n{"a":[\n%s]}\n{"c":2}' % long,
    ):
        for size in (1, 9, 1000):
            found = split(data, size, bytes_max=50)
            assert [each.text.strip() for each in found] == [b'{"b":1}', b"", b'{"c":2}']
            assert found[1] == (2, b"", "longer than 50 bytes")


def test_the_buffer_is_bounded() -> None:
    for piece in (b"x" * 999, b'"' + b"x" * 999, b'{"a":"', b"[" * 999, b"\\" * 999, b"[1\n"):
        splitter = JsonSplitter(bytes_max=10_000)
        for data in (b"[1,", *[piece] * 200):
            list(splitter.split(data))
            assert len(splitter._data) <= 10_000 + len(data)
            assert len(splitter._open) <= 64


@given(TICKS, st.sampled_from([None, 0, 2]), st.integers(1, 50))
def test_values_survive_any_layout_and_any_pieces(
    ticks: list[dict[str, Any]], indent: int | None, size: int
) -> None:
    data = json.dumps(ticks, indent=indent).encode()
    whole: list[Any] = []
    for each in split(data, size):
        value = json.loads(each.text)
        whole += value if isinstance(value, list) else [value]
    assert whole == ticks
    lines = "\n".join(json.dumps(tick, indent=indent) for tick in ticks).encode()
    assert [json.loads(each.text) for each in split(lines, size)] == ticks


@given(st.binary() | st.text('"\\{}[],:\n 1').map(str.encode), st.integers(1, 20))
def test_any_bytes_split_alike_in_any_pieces(data: bytes, size: int) -> None:
    found = split(data, size)
    assert found == split(data)
    assert [each.line for each in found] == sorted(each.line for each in found)


@given(st.lists(st.integers(0, 99), min_size=2, max_size=8), st.data())
def test_a_damaged_line_costs_only_itself(numbers: list[int], data: st.DataObject) -> None:
    lines = [b'{"T":"t","S":"A","p":%d,"x":"y"}' % number for number in numbers]
    damaged = data.draw(st.integers(0, len(lines) - 1))
    lines[damaged] = lines[damaged][: data.draw(st.integers(0, len(lines[0]) - 1))]
    good = [each.text for each in split(b"\n".join(lines)) if is_json(each.text)]
    assert good == [line for number, line in enumerate(lines) if number != damaged]


def is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
