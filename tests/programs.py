"""Run the programs of the documentation and the examples as processes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

ENOUGH_LINES = 3
GOES_ON_S = 0.3
PATIENCE_S = 30.0


async def run_program(command: Sequence[str], directory: Path, *, ends: bool = False) -> list[str]:
    """Run a program until it ends, or has printed enough and continues: then it is killed.

    Returns the printed lines. If the program ends, its exit code must be 0.

    Args:
        ends: whether it must end without being killed.
    """
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    said: list[str] = []
    try:
        async with asyncio.timeout(PATIENCE_S) as patience:
            while line := await process.stdout.readline():
                said.append(line.decode().rstrip())
                if len(said) == ENOUGH_LINES and not ends:
                    patience.reschedule(asyncio.get_running_loop().time() + GOES_ON_S)
            assert await process.wait() == 0, await process.stderr.read()
    except TimeoutError:
        assert len(said) >= ENOUGH_LINES, said
        assert not ends, said
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    return said
