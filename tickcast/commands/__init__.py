"""The command `tickcast`, which finds each command by its dotted name and runs it.

Each program keeps its commands next to what they run. This package knows only their names, so the
library imports no program.
"""

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

_INTERRUPTED: Final = 130
_SHOWN: Final = 80
_DESCRIPTORS: Final = 12
"""Free file descriptors that a command needs to start."""
_MODULES: Final = {
    "demo": "feed.commands.demo",
    "serve": "feed.commands.serve",
    "publish": "producers.commands.publish",
    "replay": "producers.commands.replay",
    "replayctl": "producers.commands.replayctl",
    "live": "producers.commands.live",
    "synth": "producers.commands.synth",
    "bars": "producers.commands.bars",
    "watch": "clients.commands.watch",
    "record": "clients.commands.record",
    "tape": "producers.commands.tape",
    "load": "clients.commands.load",
    "keys": "feed.commands.keys",
    "config": "tickcast.commands.config",
    "doctor": "feed.commands.doctor",
    "completion": "tickcast.commands.completion",
}
"""The module of each command, in the order of `tickcast --help`."""


def command_module(name: str) -> Any:
    """Import the module of one command."""
    return importlib.import_module(_MODULES[name])


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


class _Commands(click.Group):
    """Imports a command only when it is used, since each needs only part of the package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest from all commands; click suggests only from those that have been imported."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=_MODULES, ctx=ctx
            ) from None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        command: click.Command = getattr(command_module(cmd_name), cmd_name)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
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


def _run(words: Sequence[str]) -> int:
    try:
        _refuse_empty(words)
        _check_descriptors()
        with logged_on_stderr("tickcast.settings"):
            code: int = tickcast.main(words, "tickcast", standalone_mode=False) or 0
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
        bad = ascii(error.object[error.start : error.end])[:_SHOWN]
        code = _fail(f"an argument or a file name holds {bad}, which is not text in UTF-8", 2)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        code = _fail(f"{what}{error.strerror or error}", 1)
    except (KeyboardInterrupt, click.Abort):
        code = _INTERRUPTED
    return code


def _refuse_empty(words: Sequence[str]) -> None:
    """Reject empty arguments, which result from unset shell variables.

    No option or argument of any command may be empty, and some empty values would be harmful: a
    path would mean the current directory, and a server without credentials would be open to all.
    """
    before = ""
    for word in words:
        option, sign, value = word.partition("=")
        if not word.strip() or (sign and option.startswith("--") and not value.strip()):
            name = option if sign else before
            what = f"{name}: the value" if name.startswith("-") else "an argument"
            raise click.UsageError(f"{what} is empty; give one, or leave the option out")
        before = word


def _check_descriptors() -> None:
    """Check that some files can be opened. Without them an event loop can't even be closed.

    Raises:
        OSError: there are too few free file descriptors.
    """
    with ExitStack() as stack:
        for _ in range(_DESCRIPTORS):
            stack.callback(os.close, os.dup(0))


def _fail(message: str, code: int) -> int:
    click.echo(f"tickcast: {' '.join(message.split())}", err=True)
    return code
