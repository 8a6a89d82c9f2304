from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import until
from tickcast.broker import supervisor
from tickcast.broker.client import make_client
from tickcast.broker.embedded import find_store, provided_store
from tickcast.settings import Settings
from tickcast.wire.errors import StoreUnavailable

HOLD_A_STORE = """
import asyncio, sys
from tickcast.broker.embedded import provided_store
from tickcast.settings import Settings

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


async def test_it_starts_answers_and_leaves_nothing_behind(
    settings: Settings, runtime_dir: Path
) -> None:
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


async def test_a_second_server_uses_the_store_of_the_first(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with provided_store(settings) as first:
        async with provided_store(settings) as second:
            assert second == first
        assert "a store is already running" in caplog.text
        assert await find_store(settings) == first


async def test_concurrent_starts_run_one_store(settings: Settings, runtime_dir: Path) -> None:
    entered, leave = asyncio.Semaphore(0), asyncio.Event()

    async def hold() -> str:
        async with provided_store(settings) as url:
            entered.release()
            await leave.wait()
            return url

    tasks = [asyncio.create_task(hold()) for _ in range(5)]
    for _ in tasks:
        await entered.acquire()
    assert len(processes_using(runtime_dir)) == 2  # the supervisor and its store
    leave.set()
    assert len(set(await asyncio.gather(*tasks))) == 1
    assert not runtime_dir.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_store_ends_with_its_parent(runtime_dir: Path, number: signal.Signals) -> None:
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


def supervisor_of(directory: Path) -> int:
    """The process id of the supervisor of the store in a directory."""
    (pid,) = (
        pid
        for pid in processes_using(directory)
        if b"supervisor.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return pid


def are_gone(processes: Sequence[int], directory: Path) -> bool:
    return not set(processes) & set(processes_using(directory))


def is_logged(caplog: pytest.LogCaptureFixture, words: str, count: int) -> bool:
    return caplog.text.count(words) == count


async def test_a_store_killed_with_its_supervisor_is_restarted(
    settings: Settings, runtime_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with provided_store(settings) as url:
        for count in (1, 2):
            killed = processes_using(runtime_dir)
            os.kill(supervisor_of(runtime_dir), signal.SIGKILL)
            await until(partial(are_gone, killed, runtime_dir))
            words = "the embedded store was killed; a new one has started, empty"
            await until(partial(is_logged, caplog, words, count))
            assert await answers(settings)
        assert await find_store(settings) == url
        assert len(processes_using(runtime_dir)) == 2
    assert processes_using(runtime_dir) == []
    assert not runtime_dir.exists()


async def test_leftovers_of_a_killed_supervisor_do_no_harm(runtime_dir: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD_A_STORE, str(runtime_dir), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    assert await parent.stdout.readline()
    supervisor_pid = supervisor_of(runtime_dir)
    parent.send_signal(signal.SIGSTOP)
    os.kill(supervisor_pid, signal.SIGKILL)
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await until(lambda: not processes_using(runtime_dir))
    settings = Settings(runtime_dir=str(runtime_dir))
    async with provided_store(settings) as url:
        assert await find_store(settings) == url


async def test_a_store_whose_server_is_gone_is_replaced_by_another_server_that_uses_it(
    settings: Settings, runtime_dir: Path
) -> None:
    first = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD_A_STORE, str(runtime_dir), stdout=subprocess.PIPE
    )
    assert first.stdout is not None
    assert await first.stdout.readline()
    async with provided_store(settings) as url:
        processes = processes_using(runtime_dir)
        first.kill()
        await first.wait()
        async with asyncio.timeout(10):
            while not (are_gone(processes, runtime_dir) and await answers(settings)):
                await asyncio.sleep(0.01)
        assert await find_store(settings) == url
    await until(lambda: not processes_using(runtime_dir))


async def answers(settings: Settings) -> bool:
    try:
        await find_store(settings)
    except StoreUnavailable:
        return False
    return True


@pytest.mark.parametrize("what", ["directory", "store.sock", "store.lock"])
async def test_directories_of_other_users_are_rejected(
    settings: Settings, runtime_dir: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with provided_store(settings):
        assert await answers(settings)
        theirs = runtime_dir if what == "directory" else runtime_dir / what
        me, stat, lstat = os.getuid(), Path.stat, Path.lstat

        def as_theirs(
            path: Path, real: Callable[..., os.stat_result], **options: Any
        ) -> os.stat_result:
            status = list(real(path, **options))
            status[4] = me + 1 if path == theirs else me
            return os.stat_result(status)

        monkeypatch.setattr(Path, "stat", lambda path, **more: as_theirs(path, stat, **more))
        monkeypatch.setattr(Path, "lstat", lambda path: as_theirs(path, lstat))
        with pytest.raises(StoreUnavailable, match=f"{theirs} belongs to another user"):
            await find_store(settings)
        if what == "directory":
            with pytest.raises(StoreUnavailable, match=f"{theirs} belongs to another user"):
                async with provided_store(settings):
                    pass
        monkeypatch.undo()


async def test_a_directory_of_the_user_keeps_its_files(
    settings: Settings, runtime_dir: Path
) -> None:
    runtime_dir.mkdir()
    (runtime_dir / "mine.txt").write_text("precious")
    async with provided_store(settings):
        pass
    assert [path.name for path in runtime_dir.iterdir()] == ["mine.txt"]


async def test_unusable_directories_are_explained(tmp_path: Path) -> None:
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
        with pytest.raises(StoreUnavailable, match="everybody can write"):
            await start(open_to_all)
    finally:
        open_to_all.rmdir()


def test_the_supervisor_runs_on_the_standard_library_and_passes_the_exit_code_on() -> None:
    command = [sys.executable, "-I", "-S", supervisor.__file__, "keep", "/nonexistent"]
    with subprocess.Popen([*command, "sh", "-c", "exit 3"], stdin=subprocess.PIPE) as process:
        assert process.wait(timeout=10) == 3
