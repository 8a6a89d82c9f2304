"""The report's keys, scales and formats."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from clients.load.charts import linear, logarithmic
from clients.load.report import Bucket, LoadReport, Workload
from clients.load.text import bar, coarse, ms, remark, size


@given(st.lists(st.floats(1e-3, 1e9), min_size=1))
def test_scales_contain_all_values(values: list[float]) -> None:
    for scale in (linear(values), logarithmic(values)):
        assert scale.high >= max(values) * 0.9999
        assert 2 <= len(scale.marks) <= 16
        assert all(0 <= scale.share(value) <= 1 for value in values)


@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 5)), min_size=1), st.integers(4, 30)
)
def test_coarse_histogram_loses_nothing(pairs: list[tuple[int, int]], rows: int) -> None:
    found = coarse([Bucket(low / 1000, count) for low, count in sorted(pairs)], rows)
    assert sum(count for _, _, count in found) == sum(count for _, count in pairs)
    assert len(found) <= rows + 2
    assert all(low < high for low, high, _ in found)


def test_formats() -> None:
    values = (0, 0.0123, 0.9999, 1, 12.345, 999.9, 1000, 61_234, 10**7)
    assert [ms(value) for value in values] == [
        "0 µs", "12.3 µs", "1000 µs", "1 ms", "12.3 ms", "1000 ms", "1 s", "61.2 s", "10,000 s",
    ]  # fmt: skip
    assert [size(value) for value in (0, 999, 1234, 5.678e6, 9e9)] == [
        "0 B", "999 B", "1.23 kB", "5.68 MB", "9 GB",
    ]  # fmt: skip
    assert [bar(share, 2) for share in (0, 0.001, 0.5, 1)] == ["", "▏", "█", "██"]


def keys_of(kind: Any) -> set[str]:
    """Collect the JSON keys of a struct and of all structs in it."""
    found: set[str] = set()
    for info in msgspec.inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        found.add(info.encode_name)
        pending = [info.type]
        while pending:
            each = pending.pop()
            pending += getattr(each, "types", ())
            pending += [each.item_type] if hasattr(each, "item_type") else []
            if isinstance(each, msgspec.inspect.StructType):
                found |= keys_of(each.cls)
    return found


def test_every_key_of_the_report_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "load-testing.md").read_text("utf-8")
    options = {field.name for field in msgspec.structs.fields(Workload)}
    keys = keys_of(LoadReport) - options - {"schema"}
    assert len(keys) > 80
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_further_lines_of_a_remark_are_indented() -> None:
    console = Console(width=30, file=io.StringIO())
    console.print(remark("warning", "the publisher came late, by 90 ms", "yellow"))
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines == ["warning  the publisher came", "         late, by 90 ms"]
