"""A program that uses the product's own client library, checked by the ids that tests assign."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.accounts import Sums
from tickcast import Stream, connect
from tickcast.wire.encoding import Encoding
from tickcast.wire.ticks import Trade


class Follower:
    """Iterate over the trades of one feed until cancelled.

    Attributes:
        live: True once it has subscribed.
        gaps: the gaps that the library has reported.
        delivered: ticks that came. `disordered`: those whose id is not above the previous one.
        sums: what it received according to the ids, and what its library reports.
    """

    def __init__(self, url: str, symbols: Sequence[str], encoding: Encoding) -> None:
        self.live = False
        self.gaps: list[object] = []
        self.delivered = 0
        self.disordered = 0
        self._last_ids: dict[str, int] = {}
        self._url = url
        self._symbols = symbols
        self._encoding = encoding
        self._stream: Stream | None = None

    def __repr__(self) -> str:
        names = " ".join(self._symbols)
        return f"<Follower of {names}, {self._encoding.value}, at {self._last_ids}>"

    @property
    def reconnects(self) -> int:
        return self._stream.reconnects if self._stream else 0

    def has(self, symbol: str, id_: int) -> bool:
        """Return whether it has received a tick of the symbol with this id or a later one."""
        return self._last_ids.get(symbol, 0) >= id_

    async def run(self) -> None:
        async with connect(
            self._url, encoding=self._encoding, on_gap=self.gaps.append
        ) as self._stream:
            await self._stream.subscribe(trades=self._symbols)
            self.live = True
            async for tick in self._stream:
                assert isinstance(tick, Trade)
                assert isinstance(tick.id, int)
                self.delivered += 1
                self.disordered += tick.id <= self._last_ids.get(tick.symbol, 0)
                self._last_ids[tick.symbol] = tick.id

    @property
    def sums(self) -> Sums:
        if self._stream is None:
            return Sums()
        report = self._stream.report()
        if not self._stream.waiting:
            assert report.total("delivered") == self.delivered, report
            assert report.balanced, report
        told = ("merged", "skipped", "gapped", "repeated", "missing", "restarts")
        return Sums(
            delivered=self.delivered,
            disordered=self.disordered,
            **{name: report.total(name) for name in told},
        )
