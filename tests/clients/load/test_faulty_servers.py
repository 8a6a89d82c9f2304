"""The load command against servers that make mistakes, such as one in a million ticks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.clients.load.scripted_server import Message, ScriptedServer, frame, serving, tick

CLIENTS, FRAMES, TICKS = 10, 200, 500
PUBLISHED = CLIENTS * FRAMES * TICKS
AFFECTED, PLACE = 7, FRAMES * TICKS // 2 + 123


def faulty(fault: str, messages: list[Message], place: int) -> list[Message]:
    before, one, other, after = (
        messages[:place], messages[place], messages[place + 1], messages[place + 2 :],
    )  # fmt: skip
    if fault == "drop":
        return [*before, other, *after]
    if fault == "repeat":
        return [*before, one, one, other, *after]
    return [*before, other, one, *after]


def script_of(fault: str) -> ScriptedServer:
    whole = [
        [tick(number * TICKS + place + 1) for place in range(TICKS)] for number in range(FRAMES)
    ]
    good = [frame(*messages) for messages in whole]
    number, place = divmod(PLACE, TICKS)
    bad = list(good)
    if fault:
        bad[number] = frame(*faulty(fault, whole[number], place))
    return ScriptedServer(lambda client: bad if client == AFFECTED else good)


async def run_fault(cli: Cli, fault: str, file: Path) -> tuple[int, dict[str, Any], str]:
    async with serving(script_of(fault)) as url:
        done = await cli.run(
            "load", url, "-s", "*", "-c", str(CLIENTS), "-d", "2s", "--warmup", "0",
            "--json", str(file),
        )  # fmt: skip
    assert "Traceback" not in done.err
    return done.code, json.loads(file.read_bytes()), done.out


async def test_one_mistake_in_a_million_is_found(cli: Cli, tmp_path: Path) -> None:
    faults = ("", "drop", "repeat", "swap")
    results = await asyncio.gather(
        *(run_fault(cli, fault, tmp_path / f"{fault}.json") for fault in faults)
    )
    by_fault = dict(zip(faults, results, strict=True))
    code, report, out = by_fault[""]
    assert code == 0, out
    assert report["accounts"]["delivered"] == PUBLISHED
    assert report["verdict"]["passed"]
    assert "PASSED" in out
    expected = {"drop": ("missing", PLACE + 1), "repeat": ("repeated", PLACE + 1)}
    for fault, (name, seq) in expected.items():
        code, report, out = by_fault[fault]
        assert code == 1, out
        (line,) = report["accounts"]["faults"]
        assert (line["kind"], line["first_seq"], line["last_seq"]) == (name, seq, seq)
        assert line["stream"] == "trades ES"
        assert f"FAILED: unexplained ticks: 1 {name}" in out
        assert f"{line['client']}, trades ES: {name} seq {seq:,}" in out
        assert report["accounts"][name] == 1
    code, report, out = by_fault["swap"]
    assert code == 1
    assert report["accounts"]["reordered"] == 1
    assert report["accounts"]["missing"] == 0
    assert "1 out of order" in out


async def run_short(
    cli: Cli, server: ScriptedServer, file: Path, *options: str
) -> tuple[int, dict[str, Any]]:
    async with serving(server) as url:
        done = await cli.run(
            "load", url, "-s", "ES", "-c", "3", "-d", "400ms", "--warmup", "0",
            "--json", str(file), *options,
        )  # fmt: skip
    return done.code, json.loads(file.read_bytes())


def rich_script(client: int) -> Sequence[bytes]:
    stamps: Message = {"tr": 1_700_000_000_000_000, "tw": 1_700_000_000_000_500}
    beat = {"T": "heartbeat", "t": "2026-01-05T14:30:00Z", "queue": 4096, "lag_ms": 3, "sent": 1}
    whole = frame(tick(5, **stamps))
    middle = len(whole) // 2
    payload = b'[{"T":"t","S":"ES","t":"2026-01-05T14:30:00Z","seq":20}]'
    return [
        b"\x89\x02hi",
        frame(tick(4, snap=True)),
        whole[:middle],
        whole[middle:],
        frame(tick(9, cf=3)),
        frame({"T": "skipped", "ch": "trades", "S": "ES", "from": 10, "to": 15, "n": 6}),
        frame({"T": "gap", "ch": "trades", "S": "ES", "from": 16, "to": 19, "reason": "broker"}),
        bytes((0x01, 20)) + payload[:20],
        b"\x89\x00",
        bytes((0x80, len(payload) - 20)) + payload[20:],
        frame(beat),
    ]


async def test_ticks_notices_pings_and_fragments_are_accepted(cli: Cli, tmp_path: Path) -> None:
    server = ScriptedServer(rich_script)
    code, report = await run_short(cli, server, tmp_path / "a.json")
    assert code == 0, report["verdict"]
    accounts = report["accounts"]
    assert [accounts[name] for name in ("delivered", "merged", "skipped", "gap", "snapshots")] == [
        9, 9, 18, 12, 3,
    ]  # fmt: skip
    assert report["connections"]["granted"] == {"stamps": 3, "heartbeat_ms": 3}
    assert report["timeline"][0]["queue_max_bytes"] in (0, 4096)
    for received in server.received:
        assert (0xA, b"hi") in received
        assert received[-1][0] == 8


async def test_server_of_alpacas_dialect(cli: Cli, tmp_path: Path) -> None:
    server = ScriptedServer(lambda client: [frame(tick(None), tick(None))], extended=False)
    code, report = await run_short(cli, server, tmp_path / "a.json", "--conflate-ms", "100")
    assert code == 0
    assert not report["accounts"]["checked"]
    assert report["accounts"]["unnumbered"] == 6
    assert any("carry no seq" in note for note in report["verdict"]["notes"])
    (received, *_) = server.received
    actions = [json.loads(payload)["action"] for opcode, payload in received if opcode == 1]
    assert actions == ["subscribe"]


@pytest.mark.parametrize(
    ("last_bytes", "code"), [(b"\x88\x02\x03\xf4", "1012"), (b"\x81\x85ABCDhello", "1002")]
)
async def test_connections_closed_by_the_server_fail_the_run(
    cli: Cli, tmp_path: Path, last_bytes: bytes, code: str
) -> None:
    server = ScriptedServer(
        lambda client: [frame(tick(1)), last_bytes] if client else [frame(tick(1))]
    )
    exit_code, report = await run_short(cli, server, tmp_path / "a.json")
    assert exit_code == 1
    assert report["connections"]["closes"] == {code: 2}


@pytest.mark.parametrize("status", [403, 503])
async def test_refused_handshake_ends_the_run(cli: Cli, status: int) -> None:
    async with serving(ScriptedServer(lambda client: [], status=status)) as url:
        done = await cli.run("load", url, "-s", "ES", "-c", "5", "-d", "1s")
    assert done.code == 1
    assert done.err.splitlines()[-1] == f"tickcast: {url}: HTTP {status}"
    assert done.out == ""
