"""The two log formats; a line can't be forged or control a terminal."""

from __future__ import annotations

import json
import logging
import re
import sys

from tickcast.logs import SECURITY, ConsoleFormatter, JsonFormatter

FORGED = "a\n\x1b[2J\u202eb\x85"


def record(message: str, *, failed: bool = False, **extra: object) -> logging.LogRecord:
    logging.addLevelName(SECURITY, "SECURITY")
    error = None
    if failed:
        try:
            raise ValueError(FORGED)
        except ValueError:
            error = sys.exc_info()
    return logging.getLogger("tickcast.x").makeRecord(
        "tickcast.x", SECURITY, "x.py", 1, message, (), error, extra=extra
    )


def test_console_lines() -> None:
    line = ConsoleFormatter().format(record(f"refused: {FORGED}", feed="x y", ticks=3, key=None))
    time, rest = line.split(" SECURITY ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", time)
    assert rest == r'tickcast.x: refused: a\x0a\x1b[2J\u202eb\x85 feed="x y" ticks=3'


def test_tracebacks_are_indented_and_escaped() -> None:
    first, *trace = ConsoleFormatter().format(record("failed", failed=True)).split("\n")
    assert first.endswith(" tickcast.x: failed")
    assert all(line.startswith("  ") for line in trace)
    assert trace[-1] == r"  \x1b[2J\u202eb\x85"


def test_json_lines() -> None:
    line = JsonFormatter().format(record(FORGED, failed=True, ticks=3, key=None))
    assert line.isascii()
    assert line.isprintable()
    event = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time"))
    assert event.pop("traceback").startswith("Traceback (most recent call last)")
    assert event == {"level": "security", "logger": "tickcast.x", "message": FORGED, "ticks": 3}
