"""The Autobahn cases, against the class that serves `/stream`, with an application that echoes.

WebSocket libraries are measured with these cases: 301 conversations, many of which break RFC 6455
in one place, with the reaction expected of a server. `make conformance` runs them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Final

import pytest

from tests.conformance.echo import WAYS, app
from tests.conftest import UNLIMITED, running_app
from tickcast.settings import Settings

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(600)]

_MESSAGE_MAX_BYTES: Final = 64 * 1024 * 1024
"""Cases of group 9 send messages of 16 MiB."""
_CASES: Final = 301

PASSED: Final = "passed"
INFORMATIONAL: Final = "informational"
NON_STRICT: Final = "non-strict"
FAILED: Final = "failed"
VERDICTS: Final = (PASSED, INFORMATIONAL, NON_STRICT, FAILED)


@dataclass(frozen=True)
class Known:
    """Cases that don't simply pass, with the expected verdicts and the reason."""

    cases: tuple[str, ...]
    verdicts: frozenset[str]
    reason: str


KNOWN: Final = (
    Known(
        ("7.1.5",),
        frozenset({FAILED}),
        "A close frame amid a fragmented message. The case wants its code echoed; the websockets "
        "library answers 1002, and says so in its notes on conformance. Section 5.5.1 allows it: "
        "an endpoint `typically echos` the code.",
    ),
    Known(
        ("3.2", "3.3", "3.4", "4.1.3", "4.1.4", "4.1.5", "4.2.3", "4.2.4", "4.2.5", "5.15"),
        frozenset({NON_STRICT, PASSED}),
        "A sound message just before a broken frame. Where one read brings both, the connection is "
        "failed without an answer to the first. One read or two is for the kernel to say.",
    ),
    Known(
        ("6.4.1", "6.4.2", "6.4.3", "6.4.4"),
        frozenset({NON_STRICT}),
        "Invalid UTF-8 in an early fragment: it is found at the end of the message, not at once. "
        "Messages are small, so that little would be gained by looking at each fragment.",
    ),
    Known(
        ("7.1.6", "7.13.1", "7.13.2"),
        frozenset({INFORMATIONAL}),
        "These have no wrong outcome.",
    ),
)


@pytest.mark.parametrize("way", WAYS)
async def test_the_autobahn_cases(way: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(message_max_bytes=_MESSAGE_MAX_BYTES, **UNLIMITED)
    async with running_app(app, settings) as server:
        found = await verdicts_of(f"{server.ws}/{way}")
    print(table(way, found))  # noqa: T201
    assert len(found) == _CASES, "another release of the cases: look at what has changed"
    expected = {case: known for known in KNOWN for case in known.cases}
    surprises = {
        case: verdict
        for case, verdict in found.items()
        if verdict not in (expected[case].verdicts if case in expected else {PASSED})
    }
    assert surprises == {}
    assert expected.keys() <= found.keys()
    assert not [each for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")]


async def verdicts_of(url: str) -> dict[str, str]:
    """Run all cases; return the verdict of each, by its number."""
    words = ("-m", "tests.conformance.cases", url)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    results = json.loads(output)
    return {case: verdict_on(messages, end) for case, (messages, end, _) in results.items()}


def verdict_on(messages: str, end: str) -> str:
    """Reduce a result to one word, from how the messages and the end of the connection went."""
    if messages == end == "INFORMATIONAL":
        return INFORMATIONAL
    if end != "OK":
        return FAILED
    return {"OK": PASSED, "NON-STRICT": NON_STRICT}.get(messages, FAILED)


def table(way: str, found: dict[str, str]) -> str:
    """Count the verdicts in each group of cases."""
    groups: dict[int, Counter[str]] = {}
    for case, verdict in found.items():
        groups.setdefault(int(case.partition(".")[0]), Counter())[verdict] += 1
    rows = [(str(group), groups[group]) for group in sorted(groups)]
    rows.append(("all", Counter(found.values())))
    lines = ["group  " + "".join(f"{verdict:>14}" for verdict in VERDICTS)]
    lines += [f"{name:7}" + "".join(f"{row[each]:14}" for each in VERDICTS) for name, row in rows]
    return "\n".join(("", f"taken the way `{way}`", *lines))
