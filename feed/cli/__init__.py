"""The command `tickcast`: the outermost shell, the only part that may import everything."""

from __future__ import annotations

import importlib
import sys
from typing import Final, NoReturn

import click

from feed.errors import InvalidSettings, TickcastError

_INTERRUPTED: Final = 130
_COMMANDS: Final = (
    "demo", "serve", "publish", "replay", "replayctl", "live", "synth", "bars", "watch", "record",
    "tape", "load", "keys", "acl",
)  # fmt: skip


class _Commands(click.Group):
    """Imports a command when it is asked for: each needs only a part of all there is."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, which suggests only from what has been imported."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=_COMMANDS, ctx=ctx
            ) from None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"feed.cli.{cmd_name}"), cmd_name)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="tickcast", message="%(prog)s %(version)s")
def tickcast() -> None:
    """Broadcast market data in real time: Redis in, WebSocket out.

    Start with `tickcast demo`, and open the address that it prints.
    """


def main() -> NoReturn:
    """Run the command line. An error is one line; exit code 2 is misuse, 1 is failure."""
    try:
        sys.exit(tickcast.main(standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(0)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except InvalidSettings as error:
        _fail(str(error), 2)
    except TickcastError as error:
        _fail("; ".join([str(error), *getattr(error, "__notes__", ())]), 1)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(_INTERRUPTED)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"tickcast: {' '.join(message.split())}", err=True)
    sys.exit(code)
