"""Options for reading the rows of a recording, for all commands that read one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

import click

from producers.recordings.columns import parse_columns, parse_symbols
from producers.recordings.csv import CsvRecording
from producers.recordings.layout import RowFormat
from producers.recordings.numbers import NumberReader
from producers.recordings.parquet import ParquetRecording
from producers.recordings.timestamps import TimeReader

Command = TypeVar("Command", bound=Callable[..., Any])
Value = TypeVar("Value")


class Rows(NamedTuple):
    """How to read rows; see `CsvRecording`."""

    symbol: str | None
    columns: Mapping[str, str]
    form: RowFormat


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
                 help="What prices are multiplied with, such as 1e-9."),
)  # fmt: skip


def row_options(command: Command) -> Command:
    """Add the options, and pass their values as `rows`."""

    @wraps(command)
    def with_rows(
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
            times = _parse("--time-format", lambda form: TimeReader(form, time_zone), time_format)
        numbers = NumberReader(decimal, price_scale)
        form = RowFormat(times or TimeReader(), numbers, renamed)
        return command(*args, rows=Rows(default, mapping, form), **options)

    result: Any = with_rows
    for option in reversed(_OPTIONS):
        result = option(result)
    return result  # type: ignore[no-any-return]


def show_notes(file: Path, recording: object) -> None:
    """Print notes about a recording on stderr."""
    if isinstance(recording, CsvRecording | ParquetRecording):
        for note in recording.notes:
            click.echo(f"tickcast: {file}: {note}", err=True)


def _parse(option: str, parse: Callable[[str], Value], text: str | None) -> Value | None:
    if text is None:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None
