"""Add up the accounts of a process's clients as they end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from clients.load.client import NO_CLOSE_FRAME, LoadClient
from clients.load.histogram import LatencyHistogram
from clients.load.messages import Accounts, FaultLine, add_counts
from clients.load.payload import StreamNumbers
from tickcast.wire.errors import CloseCode

FAULT_LINES_MAX: Final = 20
_TALLY_FIELDS: Final = (
    "delivered", "merged", "skipped", "gapped", "snapshots", "unnumbered",
    "missing", "repeated", "reordered", "wrong_notices",
)  # fmt: skip
_BY_POLICY: Final = frozenset((CloseCode.SLOW_CLIENT, NO_CLOSE_FRAME))
"""Close codes for a client that does not read. A close frame may not get through to it."""


class ClosedAccounts:
    """The total of the accounts of clients that have ended."""

    def __init__(self, streams: StreamNumbers) -> None:
        self._streams = streams
        self._handshake = LatencyHistogram()
        self._subscribed = LatencyHistogram()
        self.accounts = Accounts()

    def add_opened(self, client: LoadClient) -> None:
        """Record a client that has subscribed."""
        self.accounts.opened += 1
        self._handshake.record(client.greeted_us)
        self._subscribed.record(client.subscribed_us)
        add_counts(self.accounts.granted, dict.fromkeys(client.conversation.granted, 1))

    def add_refusal(self, reason: str) -> None:
        """Record a connection that failed."""
        add_counts(self.accounts.refusals, {reason[:160]: 1})

    def add_error(self, text: str) -> None:
        """Record an error message of the server."""
        add_counts(self.accounts.errors, {text[:160]: 1})

    def add_close(self, client: LoadClient) -> bool:
        """Record that the server closed a client; return whether that was expected."""
        closes = self.accounts.slow_closes if client.seat.slow else self.accounts.closes
        add_counts(closes, {str(client.close_code): 1})
        return client.seat.slow and client.close_code in _BY_POLICY

    def add_whole(self, client: LoadClient, ends: Mapping[int, int]) -> None:
        """Record a client that was connected the whole time; `ends` are its final positions."""
        tally = client.tally
        if ends and not tally.unnumbered:
            tally.close(ends)
            self.accounts.whole_clients += 1
            self.accounts.expected += sum(end - client.held[number] for number, end in ends.items())
            self.accounts.accounted += (
                tally.delivered + tally.merged + tally.skipped + tally.gapped - tally.repeated
            )
        if client.latency_count and not client.seat.slow:
            mean_us = client.latency_us / client.latency_count
            self.accounts.client_mean_us.append((client.name, mean_us))
        self.add(client)

    def add(self, client: LoadClient) -> None:
        """Record what a client received and its faults, once."""
        accounts, tally = self.accounts, client.tally
        accounts.clients += 1
        accounts.undecodable += client.undecodable
        for name in _TALLY_FIELDS:
            setattr(accounts, name, getattr(accounts, name) + getattr(tally, name))
        for fault in tally.faults[: max(0, FAULT_LINES_MAX - len(accounts.faults))]:
            known = 0 <= fault.stream < len(self._streams.names)
            accounts.faults.append(
                FaultLine(
                    client.name + (" (slow)" if client.seat.slow else ""),
                    self._streams.name(fault.stream) if known else "?",
                    fault.kind.value, fault.first, fault.last, fault.detail,
                )
            )  # fmt: skip

    def close(self) -> Accounts:
        """Return the total, ready to be sent."""
        return msgspec.structs.replace(
            self.accounts, handshake=self._handshake.pack(), subscribed=self._subscribed.pack()
        )
