"""The plan of a run and of each connection. The same seed gives the same plan."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from msgspec import Struct

from tickcast.wire.encoding import Encoding
from tickcast.wire.messages import JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL

CLIENT_NAME: Final = "tickcast-load"


class Plan(Struct, frozen=True, kw_only=True):
    """The plan of a whole run, sent to every process.

    Attributes:
        pool: symbols to choose from, possibly wildcards. Each connection gets `symbols_each` of
            them at random, or all of them if that is None.
        published: symbols to publish.
        publish_rate: ticks per second to publish; None publishes nothing.
        burst: how many ticks are due at the same moment.
        slow_share: the share of connections, 0 to 1, that stop reading from time to time.
        churn_rate: connections per second that leave, each replaced by a new one.
        ramp_rate: connections per second to open at the start.
        stall_s, read_s: how long slow clients stop reading, and how long they read in between.
        settle_s: time limit for connecting, and for ticks in flight at the end.
    """

    url: str
    connections: int = 100
    pool: tuple[str, ...] = ("*",)
    symbols_each: int | None = None
    channels: tuple[str, ...] = ("trades",)
    encoding: Encoding = Encoding.JSON
    duration_s: float = 30.0
    warmup_s: float = 1.0
    published: tuple[str, ...] = ()
    publish_rate: float | None = None
    burst: int = 1
    slow_share: float = 0.0
    stall_s: float = 2.0
    read_s: float = 1.0
    slow_rcvbuf_bytes: int = 16 * 1024
    churn_rate: float = 0.0
    ramp_rate: float = 500.0
    processes: int = 1
    seed: int = 1
    settle_s: float = 10.0
    headers: tuple[tuple[str, str], ...] = ()
    auth: dict[str, str] | None = None
    snapshot: bool = False
    stamps: bool = True
    heartbeat_ms: int = 1000
    conflate_ms: int | None = None
    slow_policy: str | None = None
    ca_file: str | None = None
    pids: tuple[int, ...] = ()

    @property
    def configure(self) -> dict[str, Any]:
        """Return the options to request with `configure`; empty if none."""
        options: dict[str, Any] = {}
        if self.stamps:
            options["stamps"] = True
        if self.heartbeat_ms:
            options["heartbeat_ms"] = self.heartbeat_ms
        return options

    @property
    def subscribe_options(self) -> dict[str, Any]:
        """Return the options to send with `subscribe`."""
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
        mine: tuple[tuple[str, str], ...] = (("User-Agent", CLIENT_NAME),)
        if self.encoding is Encoding.MSGPACK:
            # For servers that don't know the subprotocol: Alpaca's clients set this header.
            mine += (("Content-Type", "application/msgpack"),)
        return mine + self.headers


class PlannedClient(NamedTuple):
    """One planned connection, and its later replacements.

    Attributes:
        number: 0 to connections - 1, over all processes.
        slow: whether the client stops reading from time to time.
        churns: whether the client may be replaced.
        due_s: when to connect, in seconds since the start.
    """

    number: int
    slow: bool
    churns: bool
    due_s: float


def seats(plan: Plan, process: int) -> Iterator[PlannedClient]:
    """Yield the connections that one process opens, in order.

    Slow clients are spread evenly. At least every second client that always reads stays for the
    whole run, so that some can be checked up to the last tick despite any churn.
    """
    slow = _Share(plan.slow_share)
    churning = _Share(0.5 if plan.churn_rate else 0.0)
    turn = 0
    for number in range(plan.connections):
        is_slow = slow.next()
        churns = not is_slow and churning.next()
        if number * plan.processes // plan.connections == process:
            yield PlannedClient(number, is_slow, churns, turn * plan.processes / plan.ramp_rate)
            turn += 1


class _Share:
    """Answers an evenly spread share of calls with True."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._credit = 0.0

    def next(self) -> bool:
        self._credit += self._share
        if self._credit >= 1 - 1e-9:
            self._credit -= 1
            return True
        return False


def symbols_of(plan: Plan, seat: int, generation: int = 0) -> tuple[str, ...]:
    """Return the sorted symbols of a connection; each replacement draws new ones."""
    if plan.symbols_each is None or plan.symbols_each >= len(plan.pool):
        return plan.pool
    dice = random.Random(f"{plan.seed} {seat} {generation}")
    return tuple(sorted(dice.sample(plan.pool, plan.symbols_each)))


def pool_names(prefix: str, count: int) -> tuple[str, ...]:
    """Generate symbols: `LOAD000`, `LOAD001`, …."""
    width = len(str(count - 1))
    return tuple(f"{prefix}{number:0{width}}" for number in range(count))


def streams_of(plan: Plan, symbols: Sequence[str]) -> list[tuple[str, str]]:
    """Return channel and symbol of each stream of these symbols in the plan's channels."""
    return [(channel, symbol) for channel in plan.channels for symbol in symbols]
