"""The parts of the load command that do no I/O."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from clients.load import wire
from clients.load.charts import linear, logarithmic
from clients.load.conversation import SubscribeDialogue
from clients.load.gauges import read_usage
from clients.load.histogram import LatencyHistogram, bucket_of, lowest_us, merged
from clients.load.messages import Second, Timings
from clients.load.plan import Plan, pool_names, seats, symbols_of
from clients.load.publishing import PublishSchedule
from clients.load.recorder import RunRecorder
from clients.load.report import Bucket, LoadReport, Workload
from clients.load.text import bar, coarse, ms, remark, size
from tickcast.wire.encoding import Encoding, build_frame
from tickcast.wire.errors import ConnectionFailed
from tickcast.wire.ticks import Trade, channel_of, validate
from tickcast.wire.times import Time

URL = "ws://127.0.0.1:8000/stream"


# -- frames and the handshake


@given(st.lists(st.binary(max_size=300)), st.lists(st.integers(1, 200)), st.booleans())
def test_frames_come_whole_however_they_are_cut(
    payloads: list[bytes], cuts: list[int], long: bool
) -> None:
    if long:
        payloads.append(bytes(70_000))
    data = b"".join(build_frame(payload, Encoding.MSGPACK) for payload in payloads)
    reader, found = wire.FrameReader(), []
    sizes = itertools.cycle(cuts or [1000])
    while data:
        step = next(sizes) * (50 if long else 1)
        found += reader.feed(data[:step])
        data = data[step:]
    assert found == [(wire.BINARY, payload) for payload in payloads]


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\x80abcd", b"\xc1\x00", b"\x83\x00", b"\x80\x00", b"\x01\x00\x81\x00",
        b"\x09\x00", b"\x89\x7e\x00\x7e" + bytes(126), b"\x81\x7f" + bytes((255,)) * 8,
    ],
)  # fmt: skip
def test_frames_that_no_server_may_send(data: bytes) -> None:
    with pytest.raises(wire.FrameFault) as caught:
        wire.FrameReader().feed(b"\x81\x02ok" + data)
    assert caught.value.messages == ((wire.TEXT, b"ok"),)


@given(st.binary(max_size=70_000))
def test_frames_of_the_client_are_masked(payload: bytes) -> None:
    frame = wire.build_frame(wire.TEXT, payload)
    head = len(frame) - len(payload)
    assert frame[0] == 0x81
    assert frame[1] & 0x80
    assert wire.mask_payload(frame[head:], frame[head - 4 : head]) == payload


def test_handshakes_that_fail() -> None:
    for reply, reason in (
        (b"HTTP/1.1 503 Full\r\n\r\n", "HTTP 503"),
        (b"SSH-2.0-x\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 101 X\r\nSec-WebSocket-Accept: no\r\n\r\n", "does not speak WebSocket"),
        (b"x" * 20_000, "never ends"),
    ):
        handshake = wire.Handshake(wire.parse_url(URL), "tickcast.v1.json", [("A", "b")])
        assert b"\r\nA: b\r\n\r\n" in handshake.request
        with pytest.raises(ConnectionFailed, match=reason):
            handshake.feed(reply)


def test_urls() -> None:
    address = wire.parse_url("wss://[::1]:9000/v2/sim?encoding=json")
    assert address == ("::1", 9000, "/v2/sim?encoding=json", True)
    assert address.authority == "[::1]:9000"
    assert wire.parse_url("ws://x").authority == "x"


# -- messages of the client


def extended(**options: Any) -> SubscribeDialogue:
    made = SubscribeDialogue(["trades"], ["A"], configure={"stamps": True}, **options)
    made.extended = True
    return made


CONNECTED = {"T": "success", "msg": "connected"}
SUBSCRIBE = {"action": "subscribe", "trades": ["A"]}


def test_extensions_that_are_granted() -> None:
    talk = extended(auth={"key": "k", "secret": "s"}, options={"conflate_ms": 100})
    assert talk.receive(CONNECTED) == {"action": "auth", "key": "k", "secret": "s"}
    configure = talk.receive({"T": "success", "msg": "authenticated"})
    assert configure == {"action": "configure", "stamps": True}
    subscribe = talk.receive({"T": "configured", "stamps": True})
    assert subscribe == {**SUBSCRIBE, "conflate_ms": 100}
    assert not talk.ready
    assert talk.receive({"T": "subscription", "trades": ["A"]}) is None
    assert talk.ready
    assert talk.granted == {"stamps", "conflate_ms"}


def test_extensions_that_are_refused() -> None:
    refusal = {"T": "error", "code": 410, "msg": "invalid action for this feed"}
    talk = extended(options={"conflate_ms": 100})
    talk.receive(CONNECTED)
    assert talk.receive(refusal) == {**SUBSCRIBE, "conflate_ms": 100}
    assert talk.receive(refusal) == SUBSCRIBE
    assert talk.refused == {"stamps", "conflate_ms"}
    with pytest.raises(ConnectionFailed, match="410"):
        talk.receive(refusal)


def test_errors_that_mean_it() -> None:
    talk = extended(auth={"token": "x"})
    talk.receive(CONNECTED)
    with pytest.raises(ConnectionFailed, match="402 auth failed"):
        talk.receive({"T": "error", "code": 402, "msg": "auth failed"})


# -- histograms


@given(st.lists(st.integers(0, 10**8), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_quantiles_are_exact_to_a_percent(values: list[int], share: float) -> None:
    one, other = LatencyHistogram(), LatencyHistogram()
    for place, value in enumerate(values):
        (one if place % 2 else other).record(value)
    whole = merged([one.pack(), other.pack(), LatencyHistogram().pack()])
    assert whole.count == len(values)
    assert whole.max_us == max(values)
    assert whole.mean_us == pytest.approx(sum(values) / len(values))
    exact = sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]
    assert whole.quantile_us(share) == pytest.approx(exact, rel=0.01, abs=1)


@given(st.integers(0, 2**36 - 1))
def test_a_bucket_holds_what_falls_into_it(us: int) -> None:
    bucket = bucket_of(us)
    assert lowest_us(bucket) <= us < lowest_us(bucket + 1)


# -- plans


@given(
    st.integers(1, 300), st.integers(1, 7), st.floats(0, 1), st.booleans(),
)  # fmt: skip
def test_every_seat_is_given_once(count: int, processes: int, slow: float, churn: bool) -> None:
    plan = Plan(
        url=URL, connections=count, processes=processes, slow_share=slow, churn_rate=float(churn)
    )
    found = [seat for process in range(processes) for seat in seats(plan, process)]
    assert [seat.number for seat in found] == list(range(count))
    assert sum(seat.slow for seat in found) == pytest.approx(slow * count, abs=1)
    reading = [seat for seat in found if not seat.slow]
    assert sum(seat.churns for seat in reading) <= len(reading) / 2


def test_symbols_are_drawn_by_the_seed() -> None:
    plan = Plan(url=URL, pool=pool_names("X", 100), symbols_each=20, seed=3)
    assert symbols_of(plan, 1) == symbols_of(plan, 1)
    assert len({symbols_of(plan, seat) for seat in range(10)}) == 10
    assert symbols_of(plan, 1) != symbols_of(plan, 1, generation=1)
    assert set(symbols_of(plan, 1)) < set(plan.pool)
    assert plan.pool[7] == "X07"


# -- publishing


def test_the_schedule_is_open_loop() -> None:
    streams = [("trades", "A"), ("quotes", "A"), ("bars:5s", "A"), ("bars", "B")]
    schedule = PublishSchedule(streams, rate=1000, burst=10, seed=1)
    assert [schedule.bursts_due(ns) for ns in (0, 9_999_999, 10_000_000, 10**9 - 1)] == [
        1, 1, 2, 100,
    ]  # fmt: skip
    seen = set()
    for burst in range(20):
        for tick in schedule.make(10**18, burst):
            validate(tick)
            assert tick.time == 10**18 + burst * 10_000_000
            seen.add((channel_of(tick), tick.symbol))
    assert seen == set(streams)
    closing = schedule.closing_ticks(Time(5))
    assert [(channel_of(tick), tick.symbol) for tick in closing] == streams
    assert isinstance(closing[0], Trade)


# -- recording


def test_seconds_of_all_processes_are_joined() -> None:
    recorder = RunRecorder(2)
    slow, fast = LatencyHistogram(), LatencyHistogram()
    slow.record(5000)
    fast.record(1000)
    recorder.add(0, Second(0, span_s=1.0, ticks=3, reading=Timings(slow.pack()), cpu_s=0.5))
    assert recorder.last_moment() is None
    recorder.add(1, Second(0, span_s=1.0, ticks=4, reading=Timings(fast.pack()), cpu_s=0.1))
    moment = recorder.last_moment()
    assert moment is not None
    assert (moment.ticks, moment.latency().count, moment.latency().max_us) == (7, 2, 5000)
    assert recorder.reading["tick"].count == 2
    recorder.add(0, Second(1, span_s=0.3, ticks=1))
    assert [each.number for each in recorder.measured(1.3)] == [0]


def test_usage_is_read_whatever_a_program_is_called(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    rest = " ".join(["S", *["0"] * 10, "150", "50", *["0"] * 20])
    (tmp_path / "7" / "stat").write_text(f"7 (a ) b (c) {rest}\n")
    (tmp_path / "7" / "status").write_text("Name:\ta\nVmRSS:\t  2048 kB\n")
    usage = read_usage([7], tmp_path)
    assert usage is not None
    assert usage.rss_bytes == 2048 * 1024
    assert usage.cpu_s > 0
    assert read_usage([7, 8], tmp_path) is None


# -- drawing


@given(st.lists(st.floats(1e-3, 1e9), min_size=1))
def test_scales_hold_all_values(values: list[float]) -> None:
    for scale in (linear(values), logarithmic(values)):
        assert scale.high >= max(values) * 0.9999
        assert 2 <= len(scale.marks) <= 16
        assert all(0 <= scale.share(value) <= 1 for value in values)


@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 5)), min_size=1), st.integers(4, 30)
)
def test_a_coarse_histogram_loses_nothing(pairs: list[tuple[int, int]], rows: int) -> None:
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
        waiting = [info.type]
        while waiting:
            each = waiting.pop()
            waiting += getattr(each, "types", ())
            waiting += [each.item_type] if hasattr(each, "item_type") else []
            if isinstance(each, msgspec.inspect.StructType):
                found |= keys_of(each.cls)
    return found


def test_every_key_of_the_report_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "load-testing.md").read_text("utf-8")
    options = {field.name for field in msgspec.structs.fields(Workload)}
    keys = keys_of(LoadReport) - options - {"schema"}
    assert len(keys) > 80
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_further_lines_of_a_remark_stand_beside_its_kind() -> None:
    console = Console(width=30, file=io.StringIO())
    console.print(remark("warning", "the publisher came late, by 90 ms", "yellow"))
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines == ["warning  the publisher came", "         late, by 90 ms"]
