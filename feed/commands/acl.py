"""`tickcast acl`: users for a Redis that other machines can reach."""

from __future__ import annotations

import click

from tickcast.broker.acl import aclfile
from tickcast.commands.options import check_feed


def _check_feeds(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    return tuple(dict.fromkeys(check_feed(context, parameter, value) for value in values))


@click.command()
@click.option("--feed", "feeds", multiple=True, callback=_check_feeds,
              help="Only this feed, with a publisher of its own; repeatable.")  # fmt: skip
@click.option("--database", type=click.IntRange(min=0), default=0, show_default=True,
              help="The number behind the host in the Redis's URL.")  # fmt: skip
def acl(feeds: tuple[str, ...], database: int) -> None:
    """Print an aclfile for Redis.

    It has users that may publish, serve or read, and have no other rights.

    \b
    Passwords are neither read nor printed. Each has the placeholder
      #SHA256-OF-THE-PASSWORD-OF-user
    For each user, replace the text after # with the output of:
      printf %s "$PASSWORD" | sha256sum | cut -c -64
    """
    click.echo(aclfile(feeds, database), nl=False)
