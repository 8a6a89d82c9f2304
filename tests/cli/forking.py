"""Run the command many times, in forks of a process that has already imported everything.

    python -m tests.cli.forking

Each line of standard input is a case in JSON: `words`; `closed`, the numbers of the standard
streams that are closed at the start; `full`, those that lead to /dev/full; `unread`, those that are
pipes without a reader; and `encoding`. Each line of standard output is its result: the exit code
and the output.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tickcast.commands import group


def main() -> None:
    for name in group.COMMANDS:
        group.command_module(name)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_run(json.loads(line))) + "\n")
        sys.stdout.flush()


def _run(case: dict[str, Any]) -> list[Any]:
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / name for name in ("out", "err")]
        for file in files:
            file.touch()
        child = os.fork()
        if not child:
            _become(case, files)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        return [code, *(file.read_text("latin-1") for file in files)]


def _become(case: dict[str, Any], files: list[Path]) -> None:
    for number, target in enumerate([os.devnull, *map(str, files)]):
        if number in case["unread"]:
            reader, opened = os.pipe()
            os.close(reader)
        else:
            flags = os.O_WRONLY if number else os.O_RDONLY
            opened = os.open("/dev/full" if number in case["full"] else target, flags)
        os.dup2(opened, number)
        os.close(opened)
    # As Python sets them up when it starts.
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        stream = io.TextIOWrapper(raw, encoding=case["encoding"])
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for number in case["closed"]:
        os.close(number)
        name = ("stdin", "stdout", "stderr")[number]
        setattr(sys, name, None)
        setattr(sys, f"__{name}__", None)
    sys.argv = ["tickcast", *case["words"]]
    code = 70
    try:
        group.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        import traceback  # noqa: PLC0415

        traceback.print_exc()
    os._exit(code)


if __name__ == "__main__":
    main()
