"""Logs: one event a line, for people or for machines, with nothing in it that is not shown as text.

What clients and producers send can stand in a message; a control character in it could forge a
line or steer a terminal, so none gets through (CWE-117).
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, Literal

SECURITY: Final = 35
"""A level between WARNING and ERROR: somebody was turned away, or tried what nobody should."""

_OWN: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_ESCAPES: Final = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F),
                 *range(0x2066, 0x206A))
}  # fmt: skip


def set_up(level: str, form: Literal["console", "json"] = "console") -> None:
    """Log to stderr from now on.

    Args:
        level: the least that is logged: `debug`, `info`, `warning`, `security` or `error`.
        form: `console` for people, `json` for machines.
    """
    logging.addLevelName(SECURITY, "SECURITY")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else ConsoleLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # uvicorn tells at "info" what we tell ourselves.
    for name in ("uvicorn", "websockets"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))


def escape(text: str) -> str:
    """The text with all control characters, line ends and changes of direction spelled out."""
    return text.translate(_ESCAPES)


class ConsoleLines(logging.Formatter):
    """`time level logger: message name=value …`; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).astimezone()
        pairs = "".join(f" {name}={_quote(value)}" for name, value in _fields(record).items())
        line = (
            f"{when:%Y-%m-%d %H:%M:%S},{record.msecs:03.0f} {record.levelname:<8} {record.name}:"
            f" {escape(record.getMessage())}{pairs}"
        )
        if record.exc_info:
            trace = self.formatException(record.exc_info).split("\n")
            line += "".join(f"\n  {escape(each)}" for each in trace)
        return line


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        event: dict[str, object] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What was given as `extra`."""
    return {
        name: value
        for name, value in record.__dict__.items()
        if name not in _OWN and value is not None and name != "color_message"
    }


def _quote(value: object) -> str:
    text = escape(str(value))
    return json.dumps(text, ensure_ascii=False) if " " in text or '"' in text or not text else text
