"""Run the examples in docstrings; those with `URL` or `Publisher` run against a real server."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from msgspec.structs import replace

import tickcast
from tests.builders import bar, quote, trades
from tests.conftest import running_server
from tests.tickcast.client.tapes import write_tape
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "tickcast",
    "tickcast.blocking",
    *(
        f"tickcast.client.{path.stem}"
        for path in sorted((ROOT / "tickcast" / "client").glob("[a-z]*.py"))
    ),
    *(
        f"tickcast.wire.{path.stem}"
        for path in sorted((ROOT / "tickcast" / "wire").glob("[a-z]*.py"))
    ),
    "tickcast.broker.keys", "tickcast.publishing.publisher", "tickcast.tasks",
)  # fmt: skip
FLAGS = doctest.ELLIPSIS | doctest.FAIL_FAST


def members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield the module, and functions that the finder misses because a decorator wraps them."""
    yield module.__name__, module
    for name, value in vars(module).items():
        plain = inspect.unwrap(value) if callable(value) else value
        if plain is not value and getattr(plain, "__module__", "") == module.__name__:
            yield f"{module.__name__}.{name}", plain


def examples(module: ModuleType) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [
        test
        for name, member in members(module)
        for test in finder.find(member, name, module)
        if test.examples
    ]
    return sorted(found)


ALL = [test for name in MODULES for test in examples(importlib.import_module(name))]
SERVED = [test for test in ALL if re.search("URL|Publisher", test.docstring or "")]
PLAIN = [test for test in ALL if test not in SERVED]


def run(test: doctest.DocTest, **names: Any) -> None:
    said: list[str] = []
    test.globs.update(names)
    results = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert results.attempted
    assert not results.failed, "".join(said)


@pytest.mark.parametrize("test", PLAIN, ids=lambda test: test.name)
def test_examples(test: doctest.DocTest) -> None:
    run(test)


@pytest.mark.parametrize("test", SERVED, ids=lambda test: test.name)
async def test_examples_with_a_server(
    test: doctest.DocTest,
    settings: Settings,
    redis_url: str,
    publisher: FeedPublisher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Where `Publisher` finds the store.
    monkeypatch.setenv("TICKCAST_RUNTIME_DIR", str(settings.runtime_dir))
    write_tape(tmp_path, "es-2013-09-01")
    await publisher.publish([*trades(3), quote(), bar()])
    await publisher.flush()
    async with running_server(replace(settings, tapes=str(tmp_path)), redis_url) as server:
        # In a thread, since examples run their own event loop, or none.
        await asyncio.to_thread(run, test, URL=server.stream)


def test_an_example_that_is_wrong_fails() -> None:
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    with pytest.raises(AssertionError, match=r"Got:\n\s+2"):
        run(wrong)


def test_what_programs_begin_with_has_an_example() -> None:
    named = {".".join(test.name.split(".")[-2:]) for test in ALL}
    begun = {"stream.connect", "blocking.connect", "stream.listen", "window.Window"}
    begun.add("publisher.Publisher")
    assert begun <= named
    tour = tickcast.__doc__ or ""
    assert [name for name in tickcast.__all__ if name not in tour] == []
