"""Books of what a client got, kept by the protocol's rules alone (`docs/protocol.md`, "Numbering").

None of the product's own bookkeeping is used here: it is what these books are to judge.
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
        delivered, merged, skipped, gapped: ticks that came, and those that were said not to.
        repeated: ticks that came twice.
        reordered: ticks that came after later ones.
        missing: ticks that did not come, of which nothing was said.
        restarts: how often the numbering began anew.
        last_id: the greatest id of a tick; the tests number what they offer by it.
        disordered: ticks whose id was not higher than that of the tick before.
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
            self.last = seq - 1  # Nothing was due yet: this is where the stream begins.
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
            # The answer to a `start` that lies too far back: how many are lost is not known.
            self.last = max(self.last, message["to"])
            return
        self._cover(message["from"], message["to"])
        self.last = max(self.last, message["to"])
        self.gapped += message["to"] - message["from"] + 1

    def restart(self) -> None:
        """The numbering begins anew."""
        self.restarts += 1
        self.last = 0
        self._holes.clear()

    def _cover(self, first: int, to: int) -> None:
        """Hold what comes next against what was due."""
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
    """What a table shows of one client or of many."""

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
        """What must never happen, where it did."""
        names = ("repeated", "reordered", "missing", "disordered")
        return {name: count for name in names if (count := getattr(self, name))}


class Accounts:
    """All streams of one client, over all its connections.

    Attributes:
        streams: by channel and symbol. A stream that is met for the first time is taken to begin
            there, unless `expect` has said where.
    """

    def __init__(self) -> None:
        self.streams: dict[tuple[str, str], Account] = {}

    def expect(self, channel: str, symbol: str, after: int) -> None:
        """Say that the next tick of a stream must be the one after this."""
        self.streams[channel, symbol] = Account(after)

    def take(self, message: dict[str, Any]) -> None:
        """Enter one message of the server."""
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
