"""The command `tickcast`: arguments in, an exit code and at most one line of error out.

Each program keeps its commands next to what they run. `group` knows them by name only, so that the
library imports no program, and `tickcast --help` imports nothing but click. The other modules are
what several commands share. Start with `group`.
"""

from tickcast.commands.group import main

__all__ = ["main"]
