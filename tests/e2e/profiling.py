"""What the main thread of a page spends its time on, according to the browser's trace."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

#: Enough to split the time by kind here, and by function in the browser's view of the file.
CATEGORIES: Final = [
    "toplevel", "v8", "devtools.timeline", "disabled-by-default-devtools.timeline",
    "disabled-by-default-v8.cpu_profiler",
]  # fmt: skip
#: The spans of a trace by our categories; spans that are not listed are "other": tasks that receive
#: messages, and the bookkeeping of frames.
KINDS: Final = {
    "scripts": {"FunctionCall", "EventDispatch", "FireAnimationFrame", "TimerFire", "RunMicrotasks",
                "v8.callFunction"},
    "style": {"UpdateLayoutTree", "ScheduleStyleRecalculation"},
    "layout": {"Layout", "HitTest"},
    "paint": {"PrePaint", "Paint", "Layerize", "UpdateLayer", "Commit"},
    "collection": {"MinorGC", "MajorGC"},
}  # fmt: skip

Span = tuple[int, int, int, str]


def costs(trace: Path) -> dict[str, float]:
    """Return the thread time of each kind, as a fraction of the time that the trace covers."""
    events = json.loads(trace.read_text())["traceEvents"]
    thread = main_thread(events)
    spans: list[Span] = [
        (each["ts"], each["dur"], each.get("tdur", 0), each["name"])
        for each in events
        if each["ph"] == "X" and (each["pid"], each["tid"]) == thread
    ]
    passed = max(ts + dur for ts, dur, _, _ in spans) - min(ts for ts, _, _, _ in spans)
    kind_of = {name: kind for kind, names in KINDS.items() for name in names}
    kinds = dict.fromkeys([*KINDS, "other"], 0.0)
    for name, spent in self_times(spans).items():
        kind = "collection" if name.startswith("V8.GC") else kind_of.get(name, "other")
        kinds[kind] += spent / passed
    return kinds


def main_thread(events: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the process and thread of the page: the busiest main thread of all renderers."""
    mains = {
        (each["pid"], each["tid"])
        for each in events
        if each["name"] == "thread_name" and each["args"]["name"] == "CrRendererMain"
    }
    spent: dict[tuple[int, int], int] = defaultdict(int)
    for each in events:
        if (thread := (each["pid"], each["tid"])) in mains and each["name"] == "FunctionCall":
            spent[thread] += each.get("dur", 0)
    return max(spent, key=lambda thread: spent[thread])


def self_times(spans: list[Span]) -> dict[str, int]:
    """Return the thread time by name, without the time of nested spans."""
    own: dict[str, int] = defaultdict(int)
    around: list[tuple[int, str]] = []
    for start, lasted, spent, name in sorted(spans, key=lambda span: (span[0], -span[1])):
        while around and around[-1][0] <= start:
            around.pop()
        if around:
            own[around[-1][1]] -= spent
        own[name] += spent
        around.append((start + lasted, name))
    return own
