"""`tickcast completion`: prints a script that completes commands and options in a shell."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

_VARIABLE: Final = "_TICKCAST_COMPLETE"
"""The variable in which the script passes its request; click's default."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that completes commands and options.

    \b
      bash: eval "$(tickcast completion bash)"   in ~/.bashrc
      zsh:  eval "$(tickcast completion zsh)"    in ~/.zshrc
      fish: tickcast completion fish > ~/.config/fish/completions/tickcast.fish
    """
    completer = get_completion_class(shell)
    assert completer is not None  # Click has all three.
    click.echo(completer(context.find_root().command, {}, "tickcast", _VARIABLE).source())
