"""Accounts of what a client received, by the rules of `docs/protocol.md`, "Numbering", alone.

The product's own bookkeeping is not used here, because these accounts have to judge it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final

CHANNELS: Final = {"t": "trades", "q": "quotes"}


@dataclass
class Account:
    """One stream, as one client saw it.

    Attributes:
        last: the last number accounted for.
        delivered, merged, skipped, gapped: ticks that arrived, and ticks reported as not sent.
        repeated: ticks that came twice.
        reordered: ticks that came after later ones.
        missing: ticks that did not arrive and were not reported.
        restarts: how often the numbering started over.
        last_id: the highest id of a tick; the tests number the ticks that they publish by it.
        disordered: ticks whose id was not higher than the previous tick's.
    """

    last: int
    delivered: int = 0
    merged: int = 0
    skipped: int = 0
    gapped: int = 0
    repeated: int = 0
    reordered: int = 0
    missing: int = 0
    restarts: int = 0
    last_id: int = 0
    disordered: int = 0
    _holes: list[range] = field(default_factory=list)

    def tick(self, message: dict[str, Any]) -> None:
        seq, merged, id_ = message["seq"], message.get("cf", 0), message.get("i", 0)
        if message.get("snap") and not self.last:
            self.last = seq - 1  # Nothing was expected yet: the stream begins here.
        if merged or seq != self.last + 1:
            self._cover(seq - merged, seq)
        self.last = max(self.last, seq)
        self.delivered += 1
        self.merged += merged
        if id_ <= self.last_id:
            self.disordered += 1
        else:
            self.last_id = id_

    def skipped_notice(self, message: dict[str, Any]) -> None:
        self._cover(message["from"], message["to"])
        self.last = max(self.last, message["to"])
        self.skipped += message["n"]
        self.missing += message["to"] - message["from"] + 1 - message["n"]

    def gap(self, message: dict[str, Any]) -> None:
        if message["reason"] == "epoch":
            assert message["from"] is None, message
            assert message["to"] is None, message
            self.restart()
            return
        if message["from"] is None:
            # The answer to a `start` that is too far back: the number of lost ticks is unknown.
            self.last = max(self.last, message["to"])
            return
        self._cover(message["from"], message["to"])
        self.last = max(self.last, message["to"])
        self.gapped += message["to"] - message["from"] + 1

    def restart(self) -> None:
        """Start a new numbering."""
        self.restarts += 1
        self.last = 0
        self._holes.clear()

    def _cover(self, first: int, to: int) -> None:
        """Compare the next range of ticks with the expected one."""
        if first <= self.last:
            if any(to in hole for hole in self._holes):
                self.reordered += 1
            else:
                self.repeated += 1
        elif first > self.last + 1:
            self.missing += first - self.last - 1
            self._holes.append(range(self.last + 1, first))


@dataclass
class Sums:
    """The sums for one client or for many, as a table shows them."""

    delivered: int = 0
    merged: int = 0
    skipped: int = 0
    gapped: int = 0
    repeated: int = 0
    reordered: int = 0
    missing: int = 0
    restarts: int = 0
    disordered: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            *(getattr(self, each.name) + getattr(other, each.name) for each in fields(Sums))
        )

    @property
    def faults(self) -> dict[str, int]:
        """Return the faults that occurred; none of them must ever occur."""
        names = ("repeated", "reordered", "missing", "disordered")
        return {name: count for name in names if (count := getattr(self, name))}


class Accounts:
    """The accounts of all streams of one client, over all its connections.

    Attributes:
        streams: by channel and symbol. An unknown stream is assumed to begin with its first
            message, unless `expect` has set its beginning.
    """

    def __init__(self) -> None:
        self.streams: dict[tuple[str, str], Account] = {}

    def expect(self, channel: str, symbol: str, after: int) -> None:
        """Require that the next tick of a stream is the one after this."""
        self.streams[channel, symbol] = Account(after)

    def take(self, message: dict[str, Any]) -> None:
        """Record one message of the server."""
        kind = message["T"]
        if kind in CHANNELS:
            key = (CHANNELS[kind], message["S"])
            account = self.streams.get(key)
            if account is None:
                account = self._open(key, message["seq"] - message.get("cf", 0))
            account.tick(message)
        elif kind == "skipped":
            self._of(message).skipped_notice(message)
        elif kind == "gap":
            self._of(message).gap(message)

    def _of(self, message: dict[str, Any]) -> Account:
        key = (message["ch"], message["S"])
        return self.streams.get(key) or self._open(key, message["from"] or 1)

    def _open(self, key: tuple[str, str], first: int) -> Account:
        account = self.streams[key] = Account(first - 1)
        return account

    @property
    def sums(self) -> Sums:
        total = Sums()
        for account in self.streams.values():
            total += Sums(*(getattr(account, each.name) for each in fields(Sums)))
        return total
