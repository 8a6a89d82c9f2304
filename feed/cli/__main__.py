"""Runs the command `tickcast` as `python -m feed.cli`."""

from feed.cli import main

main()
