from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from feed.broker import guard
from feed.broker.client import make_client
from feed.broker.embedded import find_store, provided_store
from feed.errors import StoreUnavailable
from feed.settings import Settings
from tests.conftest import until

HOLD_A_STORE = """
import asyncio, sys
from feed.broker.embedded import provided_store
from feed.settings import Settings

async def main():
    async with provided_store(Settings(runtime_dir=sys.argv[1])) as url:
        print(url, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def processes_using(directory: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(directory) in words and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


async def test_starts_answers_and_leaves_nothing(settings: Settings, runtime_dir: Path) -> None:
    with pytest.raises(StoreUnavailable, match="no store is running"):
        await find_store(settings)
    async with provided_store(settings) as url:
        assert await find_store(settings) == url
        client = make_client(url)
        assert await client.ping()
        assert runtime_dir.stat().st_mode & 0o077 == 0
        assert (await client.config_get("port"))["port"] == "0"
        await client.aclose()
    assert not runtime_dir.exists()
    assert processes_using(runtime_dir) == []


async def test_the_second_uses_the_first(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with provided_store(settings) as first:
        async with provided_store(settings) as second:
            assert second == first
        assert "a store is already running" in caplog.text
        assert await find_store(settings) == first


async def test_many_at_once_start_one(settings: Settings, runtime_dir: Path) -> None:
    entered, leave = asyncio.Semaphore(0), asyncio.Event()

    async def hold() -> str:
        async with provided_store(settings) as url:
            entered.release()
            await leave.wait()
            return url

    tasks = [asyncio.create_task(hold()) for _ in range(5)]
    for _ in tasks:
        await entered.acquire()
    assert len(processes_using(runtime_dir)) == 2  # the guard and its store
    leave.set()
    assert len(set(await asyncio.gather(*tasks))) == 1
    assert not runtime_dir.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_goes_with_its_parent(runtime_dir: Path, number: signal.Signals) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD_A_STORE, str(runtime_dir), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    assert await parent.stdout.readline()
    assert processes_using(runtime_dir)
    parent.send_signal(number)
    await parent.wait()
    await until(lambda: not processes_using(runtime_dir))
    await until(lambda: not runtime_dir.exists())


async def test_goes_with_its_guard(settings: Settings, runtime_dir: Path) -> None:
    async with provided_store(settings):
        for pid in processes_using(runtime_dir):
            if b"guard.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        await until(lambda: not processes_using(runtime_dir))
    async with provided_store(settings) as url:  # What was left lying about is no hindrance.
        assert await find_store(settings) == url


async def test_a_folder_of_the_users_keeps_its_files(settings: Settings, runtime_dir: Path) -> None:
    runtime_dir.mkdir()
    (runtime_dir / "mine.txt").write_text("precious")
    async with provided_store(settings):
        pass
    assert [path.name for path in runtime_dir.iterdir()] == ["mine.txt"]


async def test_impossible_folders_are_explained(tmp_path: Path) -> None:
    async def start(directory: Path) -> None:
        async with provided_store(Settings(runtime_dir=str(directory))):
            pass

    with pytest.raises(StoreUnavailable, match="too long for a unix socket"):
        await start(Path("/tmp") / ("x" * 100))
    with pytest.raises(StoreUnavailable, match="Not a directory"):
        await start(Path("/dev/null/x"))
    open_to_all = Path("/tmp") / f"tc-open-{os.getpid()}"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    try:
        with pytest.raises(StoreUnavailable, match="written by everybody"):
            await start(open_to_all)
    finally:
        open_to_all.rmdir()


def test_the_guard_runs_on_the_standard_library_and_passes_the_exit_code_on() -> None:
    command = [sys.executable, "-I", "-S", guard.__file__, "keep", "/nonexistent"]
    with subprocess.Popen([*command, "sh", "-c", "exit 3"], stdin=subprocess.PIPE) as process:
        assert process.wait(timeout=10) == 3
