"""The options for rows of recordings, and the input of `publish`, on the command line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Shell
from tickcast.tapes import Tape
from tickcast.wire.ticks import Tick, Trade

TICK = '{"T":"t","S":"A","p":1,"s":2,"t":%s}'


def imported(shell: Shell, tmp_path: Path, content: str, *words: str) -> tuple[list[Tick], str]:
    """Import a CSV file with `tape import`; return the ticks and the output."""
    (tmp_path / "a.csv").write_text(content)
    tape = tmp_path / "a.jsonl.zst"
    done = shell.run("tape", "import", tmp_path / "a.csv", "-o", tape, *words)
    assert done.out == ""
    return list(Tape.open(tape).read()) if tape.exists() else [], done.err


@pytest.mark.parametrize(
    ("content", "words", "expected"),
    [
        (
            "Datum;Zeit;Kurs;Stück\n02.01.2024;09:00:01;187,15;1.000\n",
            "--columns time=Datum,clock=Zeit,price=Kurs,size=Stück --decimal , --symbol A"
            " --time-format %d.%m.%Y_%H:%M:%S --time-zone Europe/Berlin",
            ("2024-01-02T08:00:01Z", "A", 187.15, 1000.0),
        ),
        (
            "1704205800;^GSPC;1871500;2\n",
            "--columns time=1,symbol=2,price=3,size=4 --symbol ^GSPC=GSPC --price-scale 1e-4",
            ("2024-01-02T14:30:00Z", "GSPC", 187.15, 2.0),
        ),
    ],
)
def test_options_for_rows(
    shell: Shell,
    tmp_path: Path,
    content: str,
    words: str,
    expected: tuple[str, str, float, float],
) -> None:
    (tick,), _ = imported(
        shell, tmp_path, content, *(word.replace("_", " ") for word in words.split())
    )
    assert isinstance(tick, Trade)
    assert (tick.time.rfc3339(), tick.symbol, tick.price, tick.size) == expected


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("--symbol", "A B", "'A B' is neither a symbol nor OLD=NEW"),
        ("--symbol", "^A", "'^A' is neither a symbol nor OLD=NEW"),
        ("--columns", "when=x", "'when=x' is not WHAT=NAME"),
        ("--time-format", "%H:%M", "'%H:%M' has no date (%Y %m %d), and is not s, ms, us or ns"),
        ("--time-zone", "Mars", "'Mars' is not a time zone"),
        ("--decimal", ";", "';' is not one of"),
        ("--price-scale", "0", "0"),
    ],
)
def test_invalid_options_are_refused(
    shell: Shell, tmp_path: Path, option: str, value: str, error: str
) -> None:
    (tmp_path / "a.csv").write_text("time,price,size\n")
    for command in (["replay"], ["tape", "import", "-o", tmp_path / "a.jsonl.zst"]):
        done = shell.run(*command, tmp_path / "a.csv", option, value)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert option in done.err
        assert error in done.err


def test_missing_sizes_are_reported(shell: Shell, tmp_path: Path) -> None:
    content = "time,bid,ask\n1704205800,1,2\n1804205800,1,2\n"
    ticks, err = imported(shell, tmp_path, content, "--symbol", "A")
    assert len(ticks) == 2
    file = tmp_path / "a.csv"
    assert f"tickcast: {file}: quotes have no sizes here: they are published with size 0" in err


async def test_replay_warns_of_jumps_in_time(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("time,price,size\n1704205800,1,1\n1706205800,1,1\n1704205801,1,1\n")
    async with cli.serving():
        done = await cli.run("replay", str(path), "--symbol", "A", "--limit", "1")
        assert done.code == 0
        forth, back, last = done.err.splitlines()
        assert forth.startswith(f"tickcast: {path}: times jump by 23 days, line 3: ")
        assert back.startswith(f"tickcast: {path}: times go back by 23 days, line 4: ")
        assert last.startswith("replayed 1 tick in ")


async def test_publish_accepts_common_forms_of_json(cli: Cli, tmp_path: Path) -> None:
    good = [
        '[{"T":"success","msg":"connected"}]',
        f"[{TICK % 1704205800},{TICK % '1704205800123.5'}]",
        TICK % 1704205800123,
        TICK % 1704205800.123456789,
        TICK % '"2024-01-02 14:30:00+00"',
        '{"T":"t","S":"A","i":7,"x":"V","p":1,"s":2,"c":["@","I"],"z":"C"}',
    ]
    bad = [
        TICK % 20240102, TICK % 1704205, TICK % '"noon"', TICK % '"20240102"', TICK % "true",
        '{"T":"t","S":"A","p":1,"s":2,"zz":1}', f"[{TICK % 1704205800},{TICK % 0}]",
    ]  # fmt: skip
    wide = tmp_path / "powershell.jsonl"
    wide.write_bytes(('{"T":"t","S":"A","p":1,"s":2}\r\n' * 3).encode("utf-16"))
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(good[2].encode()))
    async with cli.serving():
        done = await cli.run("publish", stdin="\n".join([*good, *bad]))
        assert done.code == 1
        errors = done.err.splitlines()
        assert [error.split(":")[1].split()[-1] for error in errors[:7]] == [
            str(n) for n in range(7, 14)
        ]  # fmt: skip
        assert "t: 20240102 is not a time: it looks like a date, YYYYMMDD" in errors[0]
        assert "t: 'noon' is not an RFC 3339 time" in errors[2]
        assert "number 2 of 2: t: 0 is not a time" in errors[6]
        assert errors[7] == "tickcast: stdin: left out c, z, which ticks do not have"
        assert errors[8] == "tickcast: stdin: 7 bad lines left out, 6 ticks published"
        done = await cli.run("publish", str(wide))
        assert (done.code, done.err) == (0, "published 3 ticks\n")
        done = await cli.run("publish", str(packed))
        assert done.code == 1
        assert done.err == (
            f"tickcast: {packed}: compressed with gzip: unpack it first, such as with gzip -dc\n"
        )
