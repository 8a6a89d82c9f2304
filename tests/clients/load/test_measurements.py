"""Histograms, the recorder of a run, and process figures."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.load.measurements import (
    LatencyHistogram,
    LatencyHistograms,
    Second,
    lowest_us,
    merge,
)
from clients.load.results import RunRecorder, read_usage


@given(st.lists(st.integers(0, 10**8), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_quantiles_are_exact_to_a_percent(values: list[int], share: float) -> None:
    one, other = LatencyHistogram(), LatencyHistogram()
    for place, value in enumerate(values):
        (one if place % 2 else other).record(value)
    whole = LatencyHistogram()
    for part in (one, other, LatencyHistogram()):
        merge(whole, part)
    assert whole.count == len(values)
    assert whole.max_us == max(values)
    assert whole.mean_us == pytest.approx(sum(values) / len(values))
    exact = sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]
    assert whole.quantile_us(share) == pytest.approx(exact, rel=0.01, abs=1)


@given(st.integers(0, 2**36 - 1))
def test_bucket_contains_the_value(us: int) -> None:
    histogram = LatencyHistogram()
    histogram.record(us)
    (bucket,) = histogram.counts
    assert lowest_us(bucket) <= us < lowest_us(bucket + 1)


def test_seconds_of_all_processes_are_merged() -> None:
    recorder = RunRecorder(2)
    slow, fast = LatencyHistogram(), LatencyHistogram()
    slow.record(5000)
    fast.record(1000)
    recorder.add_second(
        0, Second(0, span_s=1.0, ticks=3, reading=LatencyHistograms(slow), cpu_share=0.5)
    )
    assert recorder.last_second() is None
    recorder.add_second(
        1, Second(0, span_s=1.0, ticks=4, reading=LatencyHistograms(fast), cpu_share=0.1)
    )
    second = recorder.last_second()
    assert second is not None
    assert (second.ticks, second.reading.tick.count, second.reading.tick.max_us) == (7, 2, 5000)
    assert recorder.total.reading.tick.count == 2
    recorder.add_second(0, Second(1, span_s=0.3, ticks=1))
    assert [each.number for each in recorder.measured(1.3)] == [0]


def test_usage_is_read_despite_odd_program_names(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    rest = " ".join(["S", *["0"] * 10, "150", "50", *["0"] * 8, "512", *["0"] * 20])
    (tmp_path / "7" / "stat").write_text(f"7 (a ) b (c) {rest}\n")
    usage = read_usage([7], tmp_path)
    assert usage is not None
    assert usage.rss_bytes == 512 * os.sysconf("SC_PAGE_SIZE")
    assert usage.cpu_s > 0
    assert read_usage([7, 8], tmp_path) is None
