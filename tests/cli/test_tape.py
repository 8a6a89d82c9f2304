"""`tickcast tape`, in this process."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from producers.commands.tape import new_tape
from tests.builders import T0, quote, trade, trades
from tests.cli.conftest import Shell
from tests.tickcast.tapes.builders import a_tape, write
from tickcast.tapes import Tape
from tickcast.tapes.manifest import manifest_path
from tickcast.wire.times import NS_PER_SECOND, Time


def test_info_describes_a_tape(shell: Shell, tmp_path: Path) -> None:
    tape = a_tape(tmp_path, [*trades(3, first_seq=7), *trades(1, first_seq=12), quote("NQ")])
    code, out, err = shell.run("tape", "info", tape.path)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"a: 5 ticks of 2 streams, 1 gap, {tape.manifest.bytes} bytes, complete",
        "  feed live from ws://somewhere",
        "  2013-09-01T17:00:00.083Z to 2013-09-01T17:00:00.083000002Z",
        f"  content {tape.manifest.content}",
        "  quotes NQ: 1 tick",
        "  trades ES: 4 ticks, 7 to 12",
        "  gap trades ES: 10 to 11 (missing)",
    ]
    code, out, _ = shell.run("tape", "info", "--json", tape.path)
    assert json.loads(out) == json.loads(manifest_path(tape.path).read_bytes())
    manifest_path(tape.path).unlink()
    with tape.path.open("ab") as file:
        file.write(b"\x28\xb5\x2f\xfd")
    _, out, _ = shell.run("tape", "info", tape.path)
    assert out.splitlines()[0].endswith(", not finished")
    assert out.splitlines()[1] == "  4 bytes at the end belong to no finished flush"


def test_verify_ends_with_1_where_something_is_bad(shell: Shell, tmp_path: Path) -> None:
    one = a_tape(tmp_path, trades(3, first_seq=1))
    two = tmp_path / "b.jsonl.zst"
    write(two, [trades(3, first_seq=6)])
    code, out, err = shell.run("tape", "verify", one.path)
    assert (code, out.startswith("good  a: 3 ticks of 1 stream, 0 gaps, "), err) == (0, True, "")
    code, out, err = shell.run("tape", "verify", one.path, two)
    assert (code, err) == (1, "tickcast: 1 of 2 tapes is bad\n")
    assert out.splitlines()[2] == "      trades/ES: 4 to 5 are missing after a"
    two.write_bytes(b"nonsense")
    code, out, _ = shell.run("tape", "verify", one.path, two)
    assert (code, out.splitlines()[1]) == (1, f"BAD   {two}: not a tape")


def test_cut_and_merge_make_tapes(shell: Shell, tmp_path: Path) -> None:
    tape = a_tape(tmp_path, [*trades(5, first_seq=1), *trades(2, "NQ"), quote("ES")])
    parts = [tmp_path / f"part-{n}.jsonl.zst" for n in range(3)]
    middle = "2013-09-01T17:00:00.083000002Z"
    names = ("--symbols", "ES", "--channels", "trades")
    assert shell.run("tape", "cut", tape.path, "-o", parts[0], "--to", middle, *names)[0] == 0
    code, out, err = shell.run("tape", "cut", tape.path, "-o", parts[1], "--from", middle, *names)
    assert (code, out, err.startswith("part-1: 3 ticks of 1 stream, 0 gaps, ")) == (0, "", True)
    assert [tick.time - T0 for tick in Tape.open(parts[1]).read()] == [2, 3, 4]
    assert shell.run("tape", "merge", *parts[:2], "-o", parts[2])[0] == 0
    assert list(Tape.open(parts[2]).read()) == trades(5, first_seq=1)
    assert shell.run("tape", "verify", *parts)[0] == 1  # The third repeats the others.
    assert shell.run("tape", "verify", *parts[:2])[0] == 0


def test_a_cut_accepts_offsets(shell: Shell, tmp_path: Path) -> None:
    ticks = [trade(time=Time(T0 + n * 60 * NS_PER_SECOND)) for n in range(5)]
    tape = a_tape(tmp_path, ticks)
    out = tmp_path / "part.jsonl.zst"
    options = ("--from", "+1m", "--to", "-1m")
    assert shell.run("tape", "cut", tape.path, "-o", out, *options)[0] == 0
    assert list(Tape.open(out).read()) == ticks[1:3]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["info", "/nonexistent"], 2, "Invalid value for 'FILE…': File '/nonexistent' does not"),
        (["info", "a.csv"], 1, "a.csv: not a tape"),
        (["cut", "a.csv", "-o", "b.jsonl.zst"], 1, "a.csv: not a tape"),
        (["cut", "a.jsonl.zst", "-o", "b.csv"], 2, "--out: b.csv: the name of a tape is NAME"),
        (["cut", "a.jsonl.zst", "-o", "a.jsonl.zst"], 1, "a.manifest.json: File exists"),
        (["cut", "a.jsonl.zst", "-o", "x/b.jsonl.zst"], 1, "x/b.jsonl.zst: No such file"),
        (["cut", "a.jsonl.zst", "-o", "b.jsonl.zst", "--from", "x"], 2, "Invalid value for '--fr"),
        (["cut", "a.jsonl.zst", "-o", "b.jsonl.zst", "--symbols", "A B"], 2, "--symbols: 'A B' i"),
        (["cut", "a.jsonl.zst", "-o", "b.jsonl.zst", "--channels", "x"], 2, "--channels: 'x' is"),
        (["merge", "a.jsonl.zst"], 2, "Missing option '--out'"),
    ],
)
def test_errors_are_one_line(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    a_tape(tmp_path, trades(1))
    Path("a.csv").write_text("a,b\n")
    before = sorted(tmp_path.iterdir())
    got, out, err = shell.run("tape", *words)
    assert (got, out) == (code, ""), err
    assert err.startswith(f"tickcast: {message}"), err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_out_and_in(shell: Shell, tmp_path: Path, form: str) -> None:
    tape = a_tape(tmp_path, trades(5, first_seq=1))
    table = tmp_path / f"a-trades.{form}"
    code, out, err = shell.run("tape", "export", tape.path, "-o", tmp_path, "--format", form)
    assert (code, out, err) == (0, "", f"{table}: 5 rows\n")
    again = tmp_path / "b.jsonl.zst"
    code, out, err = shell.run("tape", "import", table, "-o", again, "--feed", "es")
    assert (code, out, err.startswith("b: 5 ticks of 1 stream, 0 gaps, ")) == (0, "", True)
    manifest = Tape.open(again).manifest
    assert manifest.content == tape.manifest.content
    assert (manifest.feed, manifest.source) == ("es", table.name)


def test_import_by_mapping_reports_bad_rows(shell: Shell, tmp_path: Path) -> None:
    table, out_ = tmp_path / "a.csv", tmp_path / "b.jsonl.zst"
    table.write_text("When,Px,N\n1378054801,5,1\nx,5,1\n1378054803,6,1\n")
    words = ("--symbol", "A", "--columns", "time=When,price=Px,size=N")
    code, _, err = shell.run("tape", "import", table, "-o", out_, *words)
    assert code == 1
    assert err.splitlines()[0].startswith(f"tickcast: {table}, line 3: 'x' is not a time such as")
    assert err.splitlines()[-1] == f"tickcast: {table}: 1 bad row left out"
    assert Tape.open(out_).manifest.ticks == 2
    code, _, err = shell.run("tape", "import", table, "-o", tmp_path / "c.jsonl.zst")
    assert (code, "no time column among When, Px, N" in err) == (1, True)


CAPTURE = (
    "wss://ws.kraken.com/v2 <-> 1700000000.0\n"
    '1700000000.4: {"channel":"trade","type":"update","data":[{"symbol":"ES/USD","side":"buy",'
    '"price":1.5,"qty":2,"ord_type":"market","trade_id":1,"timestamp":"2023-11-14T22:13:20.4Z"}]}\n'
)


@pytest.mark.parametrize("name", ["a.txt", "a.parquet", "a.dbn"])
def test_import_reads_all_formats_of_replay(shell: Shell, tmp_path: Path, name: str) -> None:
    """The content of a file decides its format: neither its name nor the command matters."""
    (tmp_path / name).write_text(CAPTURE)
    tape = tmp_path / "b.jsonl.zst"
    code, _, err = shell.run("tape", "import", tmp_path / name, "-o", tape)
    assert (code, err.startswith("b: 1 tick of 1 stream")) == (0, True), err
    again = tmp_path / "c.jsonl.zst"
    assert shell.run("tape", "import", tape, "-o", again)[0] == 0
    assert list(Tape.open(again).read()) == list(Tape.open(tape).read())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("time,price,size\nx,1,1\nx,2,2\n", "no ticks, so no tape; 2 bad rows"),
        ("time,price,size\n", "no "),
        ("nothing,of,that\n1,2,3\n", "no time column"),
        ("", "empty"),
        (CAPTURE.splitlines()[0], "no ticks, so no tape; 0 bad rows"),
    ],
)
def test_an_import_that_fails_leaves_no_tape(
    shell: Shell, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "a.csv"
    file.write_text(content)
    code, _, err = shell.run(
        "tape", "import", file, "-o", tmp_path / "b.jsonl.zst", "--symbol", "A"
    )
    assert (code, err.splitlines()[-1].startswith(f"tickcast: {file}: {message}")) == (1, True), err
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_tape(tmp_path: Path, number: signal.Signals) -> None:
    def make_a_part() -> None:
        with new_tape(tmp_path / "b.jsonl.zst", "live") as writer:
            writer.append_tick(trade())
            writer.flush()
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        make_a_part()
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(number) is before


def test_a_failed_tape_is_removed(shell: Shell, tmp_path: Path) -> None:
    tape = a_tape(tmp_path, trades(30_000))
    data = bytearray(tape.path.read_bytes())
    data[-10] ^= 0x55
    tape.path.write_bytes(data)
    before = sorted(tmp_path.iterdir())
    code, _, err = shell.run("tape", "cut", tape.path, "-o", tmp_path / "b.jsonl.zst")
    assert (code, "is damaged" in err) == (1, True)
    assert sorted(tmp_path.iterdir()) == before
