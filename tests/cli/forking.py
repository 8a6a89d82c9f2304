"""Run the command in forks of one process that has imported everything.

A new process costs most of a second of CPU time, nearly all of it for imports, and the tests start
hundreds of them. A fork has the same standard streams, environment and signals as a process
that a user starts; `tests/tickcast/commands/test_group.py` tests how the command starts.
"""

from __future__ import annotations

import asyncio
import atexit
import fcntl
import gc
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL
_NAMES = ("stdin", "stdout", "stderr")
_NUMBER_BYTES = 8


class Forks:
    """The process that forks, as its users see it."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="tc", dir="/tmp")
        self._transports: list[_Transport] = []
        self._path = str(Path(self._directory.name) / "forks")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.forking", self._path],
            stdin=PIPE,
            stdout=PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"

    def close(self) -> None:
        """End the process."""
        self._server.communicate()
        self._directory.cleanup()

    async def end_all(self) -> None:
        """Kill what still runs, and close all pipes."""
        while self._transports:
            await self._transports.pop().close()

    async def start(
        self,
        words: Sequence[str],
        environment: dict[str, str],
        stdin: int | None = DEVNULL,
        stdout: int | None = PIPE,
        stderr: int | None = PIPE,
        **more: Any,
    ) -> asyncio.subprocess.Process:
        """Run the command; a stream that is None is closed at the start.

        Args:
            more: `encoding` of the standard streams, `session` with standard input as its terminal,
                and `prelude`, code to run first.
        """
        loop = asyncio.get_running_loop()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        await loop.sock_connect(connection, self._path)
        streams = (stdin, stdout, stderr)
        closed = [number for number, stream in enumerate(streams) if stream is None]
        case = {"words": list(words), "environment": environment, "closed": closed, **more}
        pipes: dict[int, int] = {}
        with ExitStack() as stack:
            files = []
            for number, stream in enumerate(streams):
                if stream == PIPE:
                    reading, writing = os.pipe()
                    pipes[number], end = (reading, writing) if number else (writing, reading)
                    stack.callback(os.close, end)
                elif stream in (DEVNULL, None):
                    end = os.open(os.devnull, os.O_RDWR)
                    stack.callback(os.close, end)
                else:
                    assert stream is not None
                    end = stream
                files.append(end)
            # A file, because a message has a limit in size that depends on the system.
            file = stack.enter_context(tempfile.TemporaryFile())
            file.write(json.dumps(case).encode())
            file.flush()
            socket.send_fds(connection, [b"!"], [*files, file.fileno()])
        pid = int.from_bytes(await loop.sock_recv(connection, _NUMBER_BYTES), signed=True)
        transport = _Transport(pid, connection)
        ends: dict[str, Any] = dict.fromkeys(_NAMES)
        for number, end in pipes.items():
            protocol = asyncio.StreamReaderProtocol(reader := asyncio.StreamReader())
            opened = os.fdopen(end, "rb" if number else "wb", 0)
            connect: Any = loop.connect_read_pipe if number else loop.connect_write_pipe
            pipe, _ = await connect(lambda protocol=protocol: protocol, opened)
            transport.pipes[number] = pipe
            ends[_NAMES[number]] = (
                reader if number else asyncio.StreamWriter(pipe, protocol, None, loop)
            )
        self._transports.append(transport)
        return asyncio.subprocess.Process(
            transport,  # type: ignore[arg-type]
            SimpleNamespace(**ends),  # type: ignore[arg-type]
            loop,
        )


@cache
def forks() -> Forks:
    """Return the process that forks for this test run."""
    process = Forks()
    atexit.register(process.close)
    return process


class _Transport:
    """What `asyncio.subprocess.Process` needs of its transport."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pipes: dict[int, asyncio.BaseTransport] = {}
        self._pid = pid
        self._code: int | None = None
        self._connection = connection
        self._waiter = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> int:
        with self._connection:
            loop = asyncio.get_running_loop()
            data = await loop.sock_recv(self._connection, _NUMBER_BYTES)
            self._code = int.from_bytes(data, signed=True)
        if 0 in self.pipes:
            self.pipes[0].close()
        return self._code

    async def close(self) -> None:
        """Kill the process if it runs, and close the pipes, whatever they hold."""
        self.kill()
        await self._wait()
        for pipe in self.pipes.values():
            pipe.close()
        await asyncio.sleep(0)

    async def _wait(self) -> int:
        return await asyncio.shield(self._waiter)

    def get_pid(self) -> int:
        return self._pid

    def get_returncode(self) -> int | None:
        return self._code

    def get_pipe_transport(self, number: int) -> asyncio.BaseTransport:
        return self.pipes[number]

    def send_signal(self, number: int) -> None:
        if self._code is None:
            with suppress(ProcessLookupError):  # It has just ended.
                os.kill(self._pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def serve(path: str) -> None:
    """Fork for each connection, until standard input ends."""
    from tickcast.commands import group  # noqa: PLC0415

    group.import_programs()
    for name in group.COMMANDS:
        group.command_module(name)
    gc.collect()
    gc.freeze()  # Collections in the forks would copy all pages.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(100)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
            connection, _ = listener.accept()
            if not os.fork():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                break
            connection.close()
        else:
            return
    _, files, _, _ = socket.recv_fds(connection, 1, 4)
    with open(files.pop(), "rb") as file:  # noqa: PTH123
        file.seek(0)
        case = json.load(file)
    child = os.fork()
    if not child:
        connection.close()
        _run(case, files, group.main)
    for number in (0, 1, 2, *files):
        os.close(number)
    connection.send(child.to_bytes(_NUMBER_BYTES))
    _, status = os.waitpid(child, 0)
    connection.send(os.waitstatus_to_exitcode(status).to_bytes(_NUMBER_BYTES, signed=True))
    os._exit(0)


def _run(case: dict[str, Any], files: Sequence[int], main: Callable[[], object]) -> None:
    code = 1
    try:
        _become(case, files)
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        # As the interpreter does at the end, except for the clean-up of modules, which takes long.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        os._exit(code)


def _become(case: dict[str, Any], files: Sequence[int]) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(case["environment"])
    if case.get("session"):
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # As Python sets them up when it starts.
    encoding = case.get("encoding", "utf-8")
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding)
    for number, name in enumerate(_NAMES[1:], 1):
        raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        errors = "strict" if number == 1 else "backslashreplace"
        stream = io.TextIOWrapper(raw, encoding, errors, line_buffering=number == 2)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for number in case["closed"]:
        os.close(number)
        name = _NAMES[number]
        setattr(sys, name, None)
        setattr(sys, f"__{name}__", None)
    sys.argv = ["tickcast", *case["words"]]
    exec(case.get("prelude", ""))


if __name__ == "__main__":
    serve(sys.argv[1])
