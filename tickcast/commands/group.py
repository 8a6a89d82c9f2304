"""The command group, which imports each command when it is used, and reports errors."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from tickcast.commands.standard_streams import logged_on_stderr, standard_streams
from tickcast.wire.errors import InvalidSettings, TickcastError

# The module of each command and its description, in the order of `tickcast --help`. Click would
# import every command for its description, which takes ten times as long as all the rest.
COMMANDS: Final = {
    "demo": ("feed.commands.demo", "Run a store, a server and a simulated market, until Ctrl-C."),
    "serve": ("feed.commands.serve", "Serve ticks to WebSocket clients."),
    "publish": ("producers.commands.publish", "Publish ticks from JSON or CSV."),
    "replay": ("producers.commands.replay", "Replay recorded ticks into a feed."),
    "replayctl": (
        "producers.commands.replay",
        "Control the replay of a feed, and print its state.",
    ),
    "live": ("producers.commands.live", "Publish live market data of a venue until Ctrl-C."),
    "synth": (
        "producers.commands.synth",
        "Publish trades and quotes of a simulated market until Ctrl-C.",
    ),
    "bars": ("producers.commands.bars", "Publish bars of a feed's trades until Ctrl-C."),
    "watch": ("clients.commands.watch", "Watch symbols live."),
    "record": (
        "clients.commands.record",
        "Record ticks from a server to tapes; see docs/recording.md.",
    ),
    "tape": ("producers.commands.tape", "Inspect, check, cut, merge, export and import tapes."),
    "load": ("clients.commands.load", "Load a server with many connections, and check every tick."),
    "keys": ("feed.commands.keys", "Manage the API keys for `tickcast serve --auth FILE`."),
    "config": (
        "tickcast.commands.config",
        "Print the settings in effect, as TOML, with their sources.",
    ),
    "doctor": (
        "feed.commands.doctor",
        "Check the settings, Redis and this machine; suggest changes.",
    ),
    "completion": (
        "tickcast.commands.completion",
        "Print a script that completes commands and options.",
    ),
}

_INTERRUPTED: Final = 130
# Free file descriptors that a command needs to start. Without them an event loop can't even be
# closed.
_DESCRIPTORS: Final = 12
_TEXT_SHOWN: Final = 80


def command_module(name: str) -> Any:
    """Import the module of one command."""
    return importlib.import_module(COMMANDS[name][0])


def import_programs() -> None:
    """Import `feed`, `producers` and `clients` from the folder that holds `tickcast`.

    The names are so common that the current directory (with `python -m tickcast`) or PYTHONPATH may
    hold other modules of these names. Imported once, the packages are found in `sys.modules`.
    """
    folder = str(Path(__file__).parents[2])
    for name in ("feed", "producers", "clients"):
        if name not in sys.modules:
            spec = PathFinder.find_spec(name, [folder])
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[name] = module_from_spec(spec)
            spec.loader.exec_module(module)
    if path := os.environ.get("PYTHONPATH"):
        # For child processes, such as the workers of `load`.
        os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{path}"


class _Group(click.Group):
    """Imports a command only when it is used, since each needs only part of the package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(command_module(cmd_name), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest from all commands; click suggests only from those that have been imported."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=COMMANDS, ctx=ctx
            ) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = formatter.width - 6 - max(map(len, COMMANDS))
        rows = [
            (name, click.Command(name, help=description).get_short_help_str(width))
            for name, (_, description) in COMMANDS.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="tickcast", message="%(prog)s %(version)s")
def tickcast() -> None:
    """Broadcast market data from Redis to WebSocket clients in real time.

    To get started, run `tickcast demo` and open the address that it prints.
    """


def main() -> NoReturn:
    """Run the command line. Errors take one line. Exit code 1 means failure, and 2 wrong usage."""
    import_programs()
    with standard_streams():
        sys.exit(_run(sys.argv[1:]))


def _run(arguments: Sequence[str]) -> int:
    try:
        _refuse_empty(arguments)
        _check_descriptors()
        with logged_on_stderr("tickcast.settings"):
            code: int = tickcast.main(arguments, "tickcast", standalone_mode=False) or 0
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 0
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
    except InvalidSettings as error:
        code = _fail(str(error), 2)
    except TickcastError as error:
        code = _fail("; ".join([str(error), *getattr(error, "__notes__", ())]), 1)
    except UnicodeEncodeError as error:
        text = ascii(error.object[error.start : error.end])[:_TEXT_SHOWN]
        code = _fail(f"an argument or a file name contains {text}, which is not UTF-8 text", 2)
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        code = _fail(f"{file}{error.strerror or error}", 1)
    except (KeyboardInterrupt, click.Abort):
        code = _INTERRUPTED
    return code


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Reject empty arguments, which result from unset shell variables.

    No option or argument of any command may be empty, and some empty values would be harmful: a
    path would mean the current directory, and a server without credentials would be open to all.
    """
    before = ""
    for argument in arguments:
        option, sign, value = argument.partition("=")
        has_empty_value = sign and option.startswith("--") and not value.strip()
        if has_empty_value or not argument.strip():
            name = option if has_empty_value else before
            subject = f"{name}: the value" if name.startswith("-") else "an argument"
            raise click.UsageError(f"{subject} is empty; give one, or leave the option out")
        before = argument


def _check_descriptors() -> None:
    with ExitStack() as stack:
        for _ in range(_DESCRIPTORS):
            stack.callback(os.close, os.dup(0))


def _fail(message: str, code: int) -> int:
    click.echo(f"tickcast: {' '.join(message.split())}", err=True)
    return code
