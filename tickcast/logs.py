"""Logging: one event per line, for people or for machines, with control characters escaped.

Messages may contain text from clients and producers. A control character in it could forge a log
line or control a terminal, so all of them are escaped (CWE-117).
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, Literal

# A level between WARNING and ERROR: a client was refused, or tried something forbidden.
SECURITY: Final = 35

# Attributes of every record; the others were passed as `extra`.
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}
# The C0 and C1 controls, line ends that only Unicode knows, and changes of text direction.
_ESCAPES: Final = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F),
                 *range(0x2066, 0x206A))
}  # fmt: skip


def set_up(level: str, log_format: Literal["console", "json"] = "console") -> None:
    """Configure logging to stderr.

    Args:
        level: lowest level to log: `debug`, `info`, `warning`, `security` or `error`.
        log_format: `console` for people, `json` for machines.
    """
    logging.addLevelName(SECURITY, "SECURITY")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # At "info", uvicorn repeats what we log ourselves.
    for name in ("uvicorn", "websockets"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))


def escape(text: str) -> str:
    """Escape all control characters, line ends and changes of text direction."""
    return text.translate(_ESCAPES)


class ConsoleFormatter(logging.Formatter):
    """`time level logger: message name=value …`; a traceback follows on separate lines."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).astimezone()
        pairs = "".join(f" {name}={_quote(value)}" for name, value in _extra_fields(record).items())
        line = (
            f"{when:%Y-%m-%d %H:%M:%S},{record.msecs:03.0f} {record.levelname:<8} {record.name}:"
            f" {escape(record.getMessage())}{pairs}"
        )
        if record.exc_info:
            trace = self.formatException(record.exc_info).split("\n")
            line += "".join(f"\n  {escape(each)}" for each in trace)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `message` and any extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        event: dict[str, object] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra_fields(record),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


def _extra_fields(record: logging.LogRecord) -> dict[str, object]:
    return {
        name: value
        for name, value in record.__dict__.items()
        if name not in _STANDARD and value is not None
    }


def _quote(value: object) -> str:
    text = escape(str(value))
    return json.dumps(text, ensure_ascii=False) if " " in text or '"' in text or not text else text
