"""One store for many tests: those of a folder whose `conftest.py` imports `redis_url` from here.

A store takes longer to start than most tests take. Tests that kill their store, or that look for it
in the runtime directory, need one of their own: the `redis_url` of `tests/conftest.py`.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as NotConnected

from tests.faults.children import end_with_parent
from tickcast.broker import embedded


@pytest.fixture(scope="session")
def shared_store() -> Iterator[Path]:
    """The socket of a store that runs until this process has run its last test."""
    with tempfile.TemporaryDirectory(prefix="tc", dir="/tmp") as directory:
        path = Path(directory) / "store.sock"
        options = ("--port", "0", "--unixsocket", str(path), "--save", "", "--dir", directory)
        process = subprocess.Popen(
            [str(embedded._find_binary()), *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=end_with_parent,  # noqa: PLW1509 - no threads here
        )  # fmt: skip
        yield path
        process.kill()
        process.wait()


@pytest.fixture
def redis_url(shared_store: Path) -> str:
    """The URL of a real store that is empty at the start of this test."""
    with Redis(unix_socket_path=str(shared_store)) as client:
        deadline = time.monotonic() + 10
        while True:
            try:
                client.client_unpause()
                break
            except NotConnected:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        client.flushall()
        client.script_flush()
        client.config_resetstat()
    return f"unix://{shared_store}"
