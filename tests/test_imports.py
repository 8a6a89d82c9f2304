"""The import rule: what depends on what. docs/architecture.md draws it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The layers of each program, the lowest first. A part imports parts of lower layers of its program,
# and any part of `tickcast`.
LAYERS = {
    "tickcast": (
        {"wire"},
        {"logs", "tasks", "venues"},
        {"settings"},
        {"tapes", "client"},
        {"broker"},
        {"publishing"},
        {"blocking"},
        {"commands"},
    ),
    "feed": (
        {"transport"},
        {"access"},
        {"fanout"},
        {"history", "ingest"},
        {"replay"},
        {"server"},
        {"commands"},
    ),
    "producers": (
        {"venues"},
        {"recordings", "bars"},
        {"simulation"},
        {"commands"},
    ),
    "clients": (
        {"terminal", "load"},
        {"commands"},
    ),
}

# No I/O and no clock of their own: bytes or messages in, messages or decisions out.
SANS_IO = (
    "tickcast/wire/*.py",
    "tickcast/venues.py",
    "feed/fanout/*.py",
    "feed/history/c*.py",
    "clients/terminal/*.py",
    "producers/bars/builder.py",
    "producers/bars/series.py",
    "producers/simulation/scenarios.py",
    *(
        f"tickcast/client/{name}.py"
        for name in ("accounts", "backoff", "messages", "state", "window")
    ),
)  # fmt: skip
IO_MODULES = {"asyncio", "socket", "redis", "starlette", "uvicorn", "websockets"}


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names of what a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def part_of(dotted: str) -> str:
    return [*dotted.split("."), ""][1]


def layer_of(program: str, part: str) -> int:
    (layer,) = (n for n, parts in enumerate(LAYERS[program]) if part in parts)
    return layer


@pytest.mark.parametrize("program", LAYERS)
def test_a_part_imports_only_lower_layers(program: str) -> None:
    wrong = []
    for path in sorted((ROOT / program).rglob("*.py")):
        own = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for name in imports_of(path):
            other = part_of(name)
            top = name.partition(".")[0]
            if top not in LAYERS or not other or other == own or own in ("__init__", "__main__"):
                continue
            is_below = top == program and layer_of(top, other) < layer_of(top, own)
            if not (is_below or (top == "tickcast" and program != "tickcast")):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("program", LAYERS)
def test_every_module_is_in_a_part(program: str) -> None:
    found = {
        path.stem
        for path in (ROOT / program).iterdir()
        if path.suffix == ".py" or list(path.glob("*.py"))
    }
    assert found - {"__init__", "__main__", "dashboard"} == set().union(*LAYERS[program])


@pytest.mark.parametrize(
    "path",
    [path for pattern in SANS_IO for path in sorted(ROOT.glob(pattern))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_core_does_no_io(path: Path) -> None:
    assert not IO_MODULES & {name.partition(".")[0] for name in imports_of(path)}
    assert not any(
        isinstance(node, ast.AsyncFunctionDef | ast.Await)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    )
