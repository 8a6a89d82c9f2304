"""Runs the command `tickcast` as `python -m tickcast`."""

from tickcast.commands import main

main()
