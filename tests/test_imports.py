"""The import rule: which parts may depend on which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("feed", "producers", "clients")
VOCABULARY = {
    "ticks", "encoding", "times", "batch", "actions", "protocol", "errors", "settings", "broker",
    "delays", "playback", "proxies", "recovery", "tapes", "tasks",
}  # fmt: skip
"""The parts of `feed` that producers and clients may use."""

# Within feed, a file may import only from rows above its own.
LAYERS = [
    {
        "times",
        "errors",
        "delays",
        "counters",
        "memory",
        "logs",
        "addresses",
        "rates",
        "headers",
        "http_rules",
        "loop_share",
        "slices",
    },
    {"tasks", "ticks", "address_limits", "proxies"},
    {"answers", "encoding"},
    {"batch", "closest", "delivery", "feeds", "lags", "settings", "frames", "playback", "tapes"},
    {"recovery"},
    {"access", "positions", "pieces", "broker", "selfsigned", "tls"},
    {"fields", "listings"},
    {"replay_actions"},
    {"actions", "blocks"},
    {"conduct", "protocol"},
    {"rights"},
    {"backlog"},
    {"outbox"},
    {"audience"},
    {"gathering", "streams", "writes"},
    {"audiences", "catchup"},
    {"hub"},
    {"door", "follower", "flusher", "private", "runs"},
    {"upstream", "starting"},
    {"session", "backfill"},
    {"replays"},
    {"transport_sink"},
    {"http", "websocket", "asgi_sink", "engine"},
    {"metrics", "server"},
    {"connection", "scraping"},
    {"handshake"},
    {"app"},
    {"cli"},
]
SANS_IO = {
    "actions", "address_limits", "addresses", "audience", "audiences", "backlog", "batch", "blocks",
    "catchup", "closest", "conduct", "counters", "delays", "delivery", "encoding", "errors",
    "feeds", "fields", "follower", "frames", "gathering", "http_rules", "hub", "lags", "outbox",
    "pieces", "playback", "positions", "protocol", "rates", "recovery", "replay_actions", "rights",
    "session", "starting", "streams",
    "ticks", "writes",
}  # fmt: skip


def imports_of(path: Path) -> Iterator[str]:
    """Return the dotted names of this project's modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(package: str) -> Iterator[Path]:
    return (ROOT / package).rglob("*.py")


def is_shell(path: Path) -> bool:
    return path.is_relative_to(ROOT / "feed" / "cli")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package: str) -> None:
    wrong = []
    for path in files(package):
        if is_shell(path):
            continue
        for name in imports_of(path):
            top, *rest = name.split(".")
            foreign = top in PACKAGES and top != package
            allowed = top == "feed" and (not rest or rest[0] in VOCABULARY)
            if foreign and not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def row_of(part: str) -> int:
    (row,) = (number for number, names in enumerate(LAYERS) if part in names)
    return row


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "feed").parts[0].removesuffix(".py")


def test_files_of_feed_import_only_from_rows_above() -> None:
    wrong = []
    for path in files("feed"):
        part = part_of(path)
        if part == "__init__":
            continue
        for name in imports_of(path):
            top, *rest = name.split(".")
            if top == "feed" and rest and rest[0] != part and row_of(rest[0]) >= row_of(part):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


VENUE_SHELLS = {"capture", "runner"}
SANS_IO_PRODUCERS = ("bars", "scenarios", "series")
SANS_IO_CLIENTS = (
    "audit", "backoff", "books", "comeback", "notices", "report", "stamps", "state", "window",
)  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        *(ROOT / "feed" / f"{name}.py" for name in sorted(SANS_IO)),
        *(ROOT / "producers" / f"{name}.py" for name in SANS_IO_PRODUCERS),
        *(ROOT / "clients" / f"{name}.py" for name in SANS_IO_CLIENTS),
        *sorted((ROOT / "clients" / "terminal").glob("*.py")),
        *(
            path
            for path in sorted((ROOT / "producers" / "venues").glob("*.py"))
            if path.stem not in VENUE_SHELLS
        ),
    ],
    ids=lambda path: path.stem,
)
def test_the_core_does_no_io(path: Path) -> None:
    assert not {"asyncio", "socket", "redis", "starlette", "uvicorn", "websockets"} & {
        imported.split(".")[0] for imported in imports_of(path)
    }
    assert not any(
        isinstance(node, ast.AsyncFunctionDef | ast.Await)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    )
