"""Streams of JSON or CSV, as they come through a pipe."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.recordings.csv import CsvRecording
from producers.recordings.formats import StreamParser
from producers.recordings.rows import TableFormat
from tests.builders import trade
from tickcast.wire.errors import InvalidRecording
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

AT = Time.parse("2026-01-05T14:30:00Z")
ROW = "2026-01-05T14:30:00Z,{},187.5,100\n"
HEADER = "time,symbol,price,size\n"


class Parsed:
    """What a stream contains, read in pieces."""

    def __init__(
        self, text: str | bytes, size: int = 1 << 16, symbol: str | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        data = text.encode() if isinstance(text, str) else text
        self.bad: list[tuple[int, str]] = []
        self.notes: list[str] = []
        self.left_out: set[str] = set()
        self.parser = StreamParser(
            symbol, columns or {}, lambda *row: self.bad.append(row), self.notes.append,
            self.left_out, TableFormat(),
        )  # fmt: skip
        self.ticks: list[Tick] = []
        for start in range(0, len(data), size):
            self.ticks += self.parser.parse(data[start : start + size])

    def end(self) -> Parsed:
        self.ticks += self.parser.parse(b"")
        return self


def symbols(parsed: Parsed) -> list[str]:
    return [tick.symbol for tick in parsed.ticks]


def test_rows_are_ticks_as_soon_as_they_arrive() -> None:
    parsed = Parsed(HEADER + ROW.format("AAPL") + ROW.format("MSFT")[:-1])
    assert parsed.ticks == [trade("AAPL", price=187.5, size=100, time=AT)]
    assert symbols(parsed.end()) == ["AAPL", "MSFT"]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        (HEADER + "\n" + ROW.format("A") + ROW.format("B").replace("\n", "\r\n"), ["A", "B"]),
        ("# a title, with a comma\n" + HEADER + ROW.format("A"), ["A"]),
        ("sep=;\n" + (HEADER + ROW.format("A")).replace(",", ";"), ["A"]),
        ("\ufeff" + HEADER + ROW.format('"A"'), ["A"]),
        ('{"T":"t","S":"A","p":1,"s":1}\n{"T":"t","S":"B","p":1,"s":1}', ["A", "B"]),
        ('\n \n[\n{"T":"t","S":"A","p":1,"s":1}]', ["A"]),
        ("", []),
        (" \n\n", []),
        (HEADER, []),
    ],
)
def test_the_content_determines_the_format(text: str, found: list[str], size: int) -> None:
    for data in (text.encode(), text.removeprefix("\ufeff").encode("utf-16")):
        parsed = Parsed(data, size).end()
        assert (symbols(parsed), parsed.bad) == (found, [])


def test_bad_rows_have_the_numbers_of_their_lines() -> None:
    text = "# title\n" + HEADER + ROW.format("A") + "\n" + ROW.format("A B") + "x,A,1,1\n"
    data = text.encode() + b"\xff\n" + b'2026-01-05T14:30:00Z,"A,1,1\n' + ROW.format("B").encode()
    for size in (1, 1000):
        parsed = Parsed(data, size).end()
        assert symbols(parsed) == ["A", "B"]
        assert sorted(number for number, _ in parsed.bad) == [5, 6, 7, 8]


def test_options_name_columns_and_symbols() -> None:
    columns = {"time": "1", "price": "2", "size": "3"}
    parsed = Parsed("2026-01-05T14:30:00Z,187.5,100\n", symbol="AAPL", columns=columns)
    assert parsed.ticks == [trade("AAPL", price=187.5, size=100, time=AT)]
    # The symbol of the file can't be used, so the option is a new name for it.
    assert symbols(Parsed(HEADER + ROW.format("^GSPC"), symbol="GSPC")) == ["GSPC"]


def test_remarks_are_shown_once() -> None:
    parsed = Parsed("time,symbol,bid,ask\n" + "2026-01-05T14:30:00Z,A,1,2\n" * 3, 10).end()
    assert len(parsed.ticks) == 3
    assert parsed.notes == ["quotes have no sizes here: they are published with size 0"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"When,Last\n2026-01-05T14:30:00Z,1\n", "no time column among When, Last"),
        (b"2026-01-05T14:30:00Z,1,1\n", "no header: line 1 holds values"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b"PAR1\x15", "use tickcast replay"),
    ],
)
def test_what_is_no_stream_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidRecording, match=message):
        Parsed(data).end()


def test_a_title_is_no_header_while_more_may_come() -> None:
    parsed = Parsed("prices, of today\n" + HEADER)
    assert symbols(parsed) == []
    parsed.ticks += parsed.parser.parse(ROW.format("A").encode())
    assert symbols(parsed) == ["A"]


@given(
    st.lists(st.sampled_from(["A", "B", "A B", '"A"', "", "x,y"]), min_size=1), st.integers(1, 99)
)
def test_a_stream_equals_a_file(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], size: int
) -> None:
    text = HEADER + "".join(map(ROW.format, names))
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_text(text)
    bad: list[tuple[int, str]] = []
    ticks = list(CsvRecording(path, "ES", on_bad_row=lambda *row: bad.append(row)))
    parsed = Parsed(text, size, symbol="ES").end()
    assert (parsed.ticks, parsed.bad) == (ticks, bad)
