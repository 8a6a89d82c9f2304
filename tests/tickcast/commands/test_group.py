"""The command group: its help, and what it imports."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

from tickcast.commands.group import COMMANDS, tickcast

# Prints the help, and then what was imported for it.
HELP = """
import json, sys
sys.argv = ["tickcast", *{arguments!r}]
from tickcast.commands import main
try:
    main()
except SystemExit as ended:
    assert ended.code == 0
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_imports_no_command(arguments: list[str]) -> None:
    program = HELP.format(arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    *text, modules = done.stdout.splitlines()
    assert [line.split()[0] for line in text[-len(COMMANDS) :]] == list(COMMANDS)
    heavy = {"redis", "websockets", "starlette", "uvicorn", "rich", "asyncio"}
    for name in json.loads(modules):
        package, _, module = name.partition(".")
        assert package not in heavy
        assert not module or package not in ("feed", "producers", "clients")


def test_help_describes_commands_as_they_do_themselves() -> None:
    context = click.Context(tickcast)
    for name, (_, description) in COMMANDS.items():
        command = tickcast.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(200) == description


def test_python_m_tickcast() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tickcast", "--version"], capture_output=True, check=True, text=True
    )
    assert done.stdout.startswith("tickcast ")
    assert done.stderr == ""
