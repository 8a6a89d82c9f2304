"""`tickcast keys`: adds, lists and revokes API keys."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from feed.access.entitlements import ANY, Entitlements
from feed.access.key_file import KeyFile, add_key, revoke_key
from feed.access.keys import NAME_MAX, Key, hash_secret, make_key_id, make_secret
from tickcast.commands.options import LIFETIME
from tickcast.settings import load_settings

Command = TypeVar("Command", bound=Callable[..., Any])


def _file_option(command: Command) -> Command:
    return click.option(
        "--file", "path", default=_default_file, show_default="TICKCAST_AUTH, or keys.toml",
        type=click.Path(dir_okay=False, path_type=Path), help="The file of keys.",
    )(command)  # fmt: skip


def _default_file() -> str:
    return load_settings().auth or "keys.toml"


@click.group()
def keys() -> None:
    """Manage the API keys for `tickcast serve --auth FILE`.

    A running server applies changes within a second.
    """


@keys.command()
@click.argument("name")
@click.option("--feeds", default=ANY, help="Comma-separated; * is any.  [default: *]")
@click.option("--channels", default=ANY, help="trades, quotes, bars, …; * is any.  [default: *]")
@click.option("--symbols", default=ANY, help="Symbols and prefixes such as BTC-*.  [default: *]")
@click.option("--publish", is_flag=True, help="Allow publishing into what the key covers.")
@click.option("--max-connections", type=click.IntRange(min=1), help="At a time.  [default: any]")
@click.option("--expires", type=LIFETIME, help="After so long: 90d, 12h.  [default: never]")
@_file_option
def add(
    name: str,
    feeds: str,
    channels: str,
    symbols: str,
    publish: bool,
    max_connections: int | None,
    expires: timedelta | None,
    path: Path,
) -> None:
    """Create a key for NAME and print its secret.

    The secret is not stored, and can't be shown again.
    """
    if not 1 <= len(name) <= NAME_MAX:
        raise click.BadParameter(f"a name has 1 to {NAME_MAX} characters", param_hint="NAME")
    covered = Entitlements(_split(feeds), _split(channels), _split(symbols))
    for fault in covered.faults():
        raise click.BadParameter(fault)
    now = datetime.now(UTC).replace(microsecond=0)
    key_id = make_key_id()
    secret = make_secret(key_id)
    key = Key(
        name=name,
        hash=hash_secret(secret),
        feeds=covered.feeds,
        channels=covered.channels,
        symbols=covered.symbols,
        publish=publish,
        max_connections=max_connections,
        created=now,
        expires=now + expires if expires else None,
    )
    add_key(path, key_id, key)
    click.echo(f"key     {key_id}")
    click.echo(f"secret  {secret}")
    click.echo(
        "The secret is not stored: note it now. It also works alone, as a bearer token.", err=True
    )


@keys.command("list")
@_file_option
def list_keys(path: Path) -> None:
    """List all keys, without their secrets."""
    stored = KeyFile(path).load()
    now_s = datetime.now(UTC).timestamp()
    table = Table(
        "key",
        "name",
        "feeds",
        "channels",
        "symbols",
        "publish",
        "max",
        "expires",
        "state",
        box=None,
    )
    for key_id, key in stored.items():
        state = "good" if key.is_valid(now_s) else "revoked" if key.revoked else "expired"
        table.add_row(
            key_id, ascii(key.name)[1:-1], ",".join(key.feeds), ",".join(key.channels),
            ",".join(key.symbols), "yes" if key.publish else "", str(key.max_connections or ""),
            f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "", state,
        )  # fmt: skip
    console = Console()
    console.print(table, width=None if console.is_terminal else 200, markup=False)


@keys.command()
@click.argument("key_id", metavar="KEY")
@_file_option
def revoke(key_id: str, path: Path) -> None:
    """Revoke a key. Its connections end within two seconds."""
    revoke_key(path, key_id, datetime.now(UTC).replace(microsecond=0))
    click.echo(f"revoked {key_id}")


def _split(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(",") if each.strip())
