"""Lets `python -m feed.cli` stand in for the command `tickcast`."""

from feed.cli import main

main()
