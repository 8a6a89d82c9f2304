"""`tickcast acl`: users for a Redis that others can reach."""

from __future__ import annotations

import click

from feed.broker.acl import aclfile
from feed.cli.common import check_feeds


@click.command()
@click.option("--feed", "feeds", multiple=True, callback=check_feeds,
              help="Only this feed, with a publisher of its own; repeatable.")  # fmt: skip
@click.option("--database", type=click.IntRange(min=0), default=0, show_default=True,
              help="The number behind the host in the Redis's URL.")  # fmt: skip
def acl(feeds: tuple[str, ...], database: int) -> None:
    """Print an aclfile for Redis: users who may publish, serve or look, and no more.

    \b
    No password is asked for or shown. In place of each stands
      #SHA256-OF-THE-PASSWORD-OF-user
    Replace all behind the # with what this prints, once for each user:
      printf %s "$PASSWORD" | sha256sum | cut -c -64
    """
    click.echo(aclfile(feeds, database), nl=False)
