"""Runs the command `tickcast` as `python -m tickcast.commands`."""

from tickcast.commands import main

main()
