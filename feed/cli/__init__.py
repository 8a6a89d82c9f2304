"""The command `tickcast`: the outermost shell, the only part that may import everything."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from feed.cli.demo import demo
from feed.cli.publish import publish
from feed.cli.replay import replay
from feed.cli.serve import serve
from feed.cli.synth import synth
from feed.cli.watch import watch
from feed.errors import InvalidSettings, TickcastError

_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tickcast", message="%(prog)s %(version)s")
def tickcast() -> None:
    """Broadcast market data in real time: Redis in, WebSocket out.

    Start with `tickcast demo`, and open the address that it prints.
    """


for _command in (demo, serve, publish, replay, synth, watch):
    tickcast.add_command(_command)


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
        _fail(str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(_INTERRUPTED)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"tickcast: {' '.join(message.split())}", err=True)
    sys.exit(code)
