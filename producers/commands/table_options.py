"""Options for reading tables, for all commands that read a recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

import click

from producers.recordings.columns import parse_columns, parse_symbols
from producers.recordings.files import BadRow, Recording
from producers.recordings.formats import StreamParser, open_recording
from producers.recordings.rows import TableFormat
from producers.recordings.timestamps import TimeReader
from producers.recordings.values import NumberReader

Command = TypeVar("Command", bound=Callable[..., Any])
Value = TypeVar("Value")


class TableOptions(NamedTuple):
    """How to read tables; see `CsvRecording`."""

    symbol: str | None
    columns: Mapping[str, str]
    table_format: TableFormat

    def parse_stream(
        self, on_bad_row: BadRow, on_note: Callable[[str], None], left_out: set[str]
    ) -> StreamParser:
        """Make a parser for a stream."""
        return StreamParser(
            self.symbol, self.columns, on_bad_row, on_note, left_out, self.table_format
        )

    def open(self, file: Path, on_bad_row: BadRow) -> Recording:
        """Open a recording."""
        return open_recording(file, self.symbol, self.columns, on_bad_row, self.table_format)


_OPTIONS: Final = (
    click.option("--symbol", metavar="NAME|OLD=NEW,…",
                 help="Symbol of rows that name none; other names: '^GSPC=GSPC,ES=F=ES'."),
    click.option("--columns", metavar="WHAT=NAME,…",
                 help="Which column is what, by name or by number: time=When,price=3,clock=-"),
    click.option("--time-format", metavar="FORMAT",
                 help="How times are written: '%d.%m.%Y %H:%M:%S.%f', or s, ms, us or ns."),
    click.option("--time-zone", metavar="ZONE",
                 help="Of times without an offset: America/New_York; default: UTC."),
    click.option("--decimal", type=click.Choice([".", ","]),
                 help="The decimal mark; the other one may separate thousands."),
    click.option("--price-scale", type=click.FloatRange(min=0, min_open=True), metavar="FACTOR",
                 help="The factor that prices are multiplied by, such as 1e-9."),
)  # fmt: skip


def table_options(command: Command) -> Command:
    """Add the options, and pass their values as `table`."""

    @wraps(command)
    def with_table(
        *args: Any,
        symbol: str | None,
        columns: str | None,
        time_format: str | None,
        time_zone: str | None,
        decimal: Literal[".", ","] | None,
        price_scale: float | None,
        **options: Any,
    ) -> Any:
        default, renamed = _parse("--symbol", parse_symbols, symbol) or (None, {})
        mapping = _parse("--columns", parse_columns, columns) or {}
        times = _parse("--time-zone", lambda zone: TimeReader(None, zone), time_zone)
        if time_format is not None:
            times = _parse("--time-format", lambda text: TimeReader(text, time_zone), time_format)
        numbers = NumberReader(decimal, price_scale)
        table_format = TableFormat(times or TimeReader(), numbers, renamed)
        table = TableOptions(default, mapping, table_format)
        return command(*args, table=table, **options)

    result: Any = with_table
    for option in reversed(_OPTIONS):
        result = option(result)
    return result  # type: ignore[no-any-return]


def show_notes(file: Path, recording: Recording) -> None:
    """Print notes about a recording on stderr."""
    for note in recording.notes:
        click.echo(f"tickcast: {file}: {note}", err=True)


def _parse(option: str, parse: Callable[[str], Value], text: str | None) -> Value | None:
    if text is None:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None
