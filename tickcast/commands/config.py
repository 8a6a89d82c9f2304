"""`tickcast config`: prints the settings in effect and where each comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import tomlkit

from tickcast.commands.options import config_option
from tickcast.settings import SECRETS, Settings, load_with_sources


@click.command()
@click.option("--all", "show_all", is_flag=True, help="Show defaults as well.")
@config_option
def config(show_all: bool, config: Path | None) -> None:
    """Print the settings in effect, as TOML, with their sources.

    Values come from the defaults, the file --config, and the environment, in this order. Secrets
    are hidden.
    """
    settings, sources = load_with_sources(config)
    lines = [
        (_line(name, getattr(settings, name), name in sources), sources.get(name, "default"))
        for name in Settings.__struct_fields__
        if show_all or name in sources
    ]
    if not lines:
        click.echo("# every setting has its default; --all shows them")
    width = min(max((len(line) for line, _ in lines), default=0), 60)
    for line, source in lines:
        click.echo(f"{line:{width}}  # {source}")


def _line(name: str, value: Any, is_set: bool) -> str:
    """Return a line of TOML, commented out if it is secret, or if a file may not contain it."""
    if name in SECRETS and is_set:
        return f'# {name} = "…"'
    if value is None or value == ():
        return f"# {name} ="
    items = list(value) if isinstance(value, tuple) else value
    return f"{name} = {tomlkit.item(items).as_string()}"
