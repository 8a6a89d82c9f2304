"""The plan of a run and of each connection. The same seed gives the same plan."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from clients.load.report import Workload
from tickcast.wire.encoding import Encoding
from tickcast.wire.messages import JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL

_POOL_REPORTED: Final = 1000


class Plan(Workload, frozen=True, kw_only=True):
    """The plan of a whole run, sent to every process."""

    # Symbols to choose from, possibly wildcards, and symbols to publish.
    pool: tuple[str, ...] = ("*",)
    published: tuple[str, ...] = ()
    # The time limit for connecting, and for ticks in flight at the end.
    timeout_s: float = 10.0
    headers: tuple[tuple[str, str], ...] = ()
    auth: dict[str, str] | None = None
    snapshot: bool = False
    stamps: bool = True
    heartbeat_ms: int = 1000
    ca_file: str | None = None
    pids: tuple[int, ...] = ()

    @property
    def configure_options(self) -> dict[str, Any]:
        """The options to request with `configure`."""
        options = {"stamps": self.stamps, "heartbeat_ms": self.heartbeat_ms}
        return {name: value for name, value in options.items() if value}

    @property
    def subscribe_options(self) -> dict[str, Any]:
        """The options to send with `subscribe`."""
        options: dict[str, Any] = {"snapshot": True} if self.snapshot else {}
        if self.conflate_ms is not None:
            options["conflate_ms"] = self.conflate_ms
        if self.slow_policy is not None:
            options["slow"] = self.slow_policy
        return options

    @property
    def subprotocol(self) -> str:
        """The subprotocol to offer in the handshake."""
        return JSON_SUBPROTOCOL if self.encoding is Encoding.JSON else MSGPACK_SUBPROTOCOL

    @property
    def request_headers(self) -> tuple[tuple[str, str], ...]:
        """The handshake headers other than those of WebSocket itself."""
        ours: tuple[tuple[str, str], ...] = (("User-Agent", "tickcast-load"),)
        if self.encoding is Encoding.MSGPACK:
            # For servers that don't know the subprotocol: Alpaca's clients set this header.
            ours += (("Content-Type", "application/msgpack"),)
        return ours + self.headers

    @property
    def published_streams(self) -> list[tuple[str, str]]:
        """Channel and symbol of each stream to publish."""
        return [(channel, symbol) for channel in self.channels for symbol in self.published]

    def workload(self) -> Workload:
        """Return what the report shows of the plan, which leaves out credentials."""
        fields = {name: getattr(self, name) for name in Workload.__struct_fields__}
        fields["pool_symbols"] = self.pool[:_POOL_REPORTED]
        fields["pool_size"], fields["published_symbols"] = len(self.pool), len(self.published)
        return Workload(**fields)


class PlannedClient(NamedTuple):
    """One planned connection, and its later replacements."""

    # From 0 to connections - 1, over all processes.
    number: int
    # Whether the client stops reading from time to time, and whether it may be replaced.
    slow: bool
    churns: bool
    # When to connect, in seconds since the start.
    due_s: float


def plan_clients(plan: Plan, process: int) -> Iterator[PlannedClient]:
    """Yield the connections that one process opens, in order.

    Slow clients are spread evenly. At least every second client that always reads stays for the
    whole run, so that some can be checked up to the last tick despite any churn.
    """
    opened = reading = 0
    for number in range(plan.connections):
        # True for an evenly spread share of the numbers.
        slow = int((number + 1) * plan.slow_share + 1e-9) > int(number * plan.slow_share + 1e-9)
        reading += not slow
        churns = bool(plan.churn_per_s) and not slow and reading % 2 == 0
        if number * plan.processes // plan.connections == process:
            yield PlannedClient(number, slow, churns, opened * plan.processes / plan.ramp_per_s)
            opened += 1


def draw_symbols(plan: Plan, client: int, generation: int = 0) -> tuple[str, ...]:
    """Return the sorted symbols of a connection; each replacement draws new ones."""
    if plan.symbols_per_connection is None or plan.symbols_per_connection >= len(plan.pool):
        return plan.pool
    rng = random.Random(f"{plan.seed} {client} {generation}")
    return tuple(sorted(rng.sample(plan.pool, plan.symbols_per_connection)))


def pool_names(prefix: str, count: int) -> tuple[str, ...]:
    """Generate symbols: `LOAD000`, `LOAD001`, …."""
    width = len(str(count - 1))
    return tuple(f"{prefix}{number:0{width}}" for number in range(count))
