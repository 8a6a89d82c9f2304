"""The result of a scenario in one line, and the checks that most scenarios share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from tests.faults.accounts import Sums
from tests.faults.scene import Client

UNDER_WAY_MAX: Final = 30
"""Ticks that a publisher of 1,000 a second may have in transit."""


def tell(name: str, published: int, clients: Iterable[Client], **more: Any) -> None:
    """Print a line about a scenario; `pytest -s` shows it."""
    everybody = list(clients)
    each = [client.sums for client in everybody]
    total = sum(each, Sums())
    least, most = min(sums.delivered for sums in each), max(sums.delivered for sums in each)
    numbers: dict[str, Any] = {
        "clients": len(each),
        "published": published,
        "delivered": least if least == most else f"{least} to {most}",
        "merged": total.merged,
        "skipped": total.skipped,
        "gapped": total.gapped,
        "duplicates": total.repeated,
        "reordered": total.reordered,
        "missing": total.missing,
        "restarts": total.restarts,
        "reconnects": sum(client.reconnects for client in everybody),
        **more,
    }
    tell_numbers(name, numbers)


def tell_numbers(name: str, numbers: dict[str, Any]) -> None:
    shown = (f"{what.replace('_', ' ')} {_text(value)}" for what, value in numbers.items())
    print(f"\n{name}: {', '.join(shown)}")  # noqa: T201


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def assert_exact(clients: Sequence[Client], published: int) -> None:
    """Check that every client received every tick exactly once and in order."""
    expected = Sums(delivered=published)
    assert {client: client.sums for client in clients} == dict.fromkeys(clients, expected)


def assert_all_restarted(clients: Sequence[Client], streams: int) -> None:
    """Check that every client was notified of one new epoch per stream, without other faults."""
    for client in clients:
        faults = client.sums.faults
        # It is unknown whether the batches in transit were delivered before the store lost them.
        # They are published again, in the new epoch.
        assert faults.pop("disordered", 0) <= UNDER_WAY_MAX, client
        assert faults == {}, client
        assert client.sums.restarts == streams, client
