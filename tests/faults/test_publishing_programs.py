"""Programs with many threads publish the same streams, through outages and a SIGKILL."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Scale
from tests.faults.report import tell_numbers
from tests.faults.scene import Scene
from tests.faults.threads import Plan, ProgramReport
from tickcast import Gap, Trade, connect

pytestmark = pytest.mark.faults


class Collector:
    """A client of all trades, which counts each tick by its thread and number."""

    def __init__(self, url: str) -> None:
        self.live = False
        self.gaps: list[Gap] = []
        self.counts: dict[str, Counter[int]] = {}
        self.total = 0
        # Ticks of a thread that came after a later one of the same stream.
        self.disordered = 0
        self._last_ids: dict[tuple[str, str], int] = {}
        self._url = url

    async def run(self) -> None:
        async with connect(self._url, encoding="msgpack", on_gap=self.gaps.append) as stream:
            await stream.subscribe(trades=["*"])
            self.live = True
            async for tick in stream:
                assert isinstance(tick, Trade)
                self.add(tick.venue, tick.symbol, tick.id)

    def add(self, thread: Any, symbol: str, id_: Any) -> None:
        self.counts.setdefault(thread, Counter())[id_] += 1
        self.total += 1
        self.disordered += id_ <= self._last_ids.get((thread, symbol), 0)
        self._last_ids[thread, symbol] = id_

    def received(self, plan: Plan) -> int:
        """Return the number of ticks of one program."""
        return sum(counts.total() for name, counts in self.counts.items() if plan.name in name)

    @property
    def repeated(self) -> int:
        return sum(n - 1 for counts in self.counts.values() for n in counts.values())


async def test_what_programs_report_is_delivered_once(directory: Path, scale: Scale) -> None:
    streams, total, batch = scale.pick((40, 6_000, 5), (500, 1_000_000, 50))
    waiting = Plan("waiting", "wait", 4, streams, batch, 0.005)
    # Like a live source. Its buffer is too small for the outages.
    dropping = Plan("dropping", "drop", 3, streams, batch, 0.005)
    killed = Plan("killed", "wait", 3, streams, batch, 0.005)
    plans = (waiting, dropping, killed)
    settings = {"history_ticks": 1_000_000, "outbox_max_bytes": 2**26, "outage_buffer_bytes": 2**16}
    patience_s = scale.pick(30, 300)
    async with Scene(directory, **settings) as scene:
        store = await scene.valkey(keeps=True)
        server = await scene.server(store.url)
        client = scene.start(Collector(server.stream()))
        await scene.until(lambda: client.live, 10, "the client is live")

        def report(plan: Plan) -> ProgramReport:
            return ProgramReport(directory / plan.name)

        async def until_received(count: int) -> None:
            await scene.until(
                lambda: client.total >= count and all(map(client.received, plans)),
                patience_s,
                lambda: f"{count:,} ticks are received, not {client.total:,}",
            )

        programs = {
            plan: scene.program("tests.faults.threads", store.url, directory / plan.name, *plan)
            for plan in plans
        }
        for number in (1, 2):
            await until_received(number * total // 4)
            store.kill()
            await scene.until(
                lambda: all(report(plan).outages >= number for plan in plans),  # noqa: B023
                10,
                lambda: f"outages noticed: {[report(plan).outages for plan in plans]}",
            )
            await scene.pass_by(0.3)
            await store.start()
            await scene.until(
                lambda: all(report(plan).recoveries >= number for plan in plans),  # noqa: B023
                patience_s,
                "all programs publish again",
            )
        await until_received(3 * total // 4)
        await scene.until(
            lambda: len(report(killed).flushed) == killed.threads, patience_s, "flushed ticks"
        )
        programs[killed].kill()
        await until_received(total)
        for plan in (waiting, dropping):
            programs[plan].terminate()
        for plan in (waiting, dropping):
            assert await programs[plan].ended(patience_s) == 0, programs[plan].said()
        stored = sum((await store.seqs("live")).values())
        await scene.until(lambda: client.total >= stored, patience_s, "everything is delivered")

        reports = {plan: report(plan) for plan in plans}
        flushed = reports[killed].flushed
        tell_numbers(
            "publishing programs",
            {"stored": stored, "delivered": client.total, "repeated": client.repeated,
             "disordered": client.disordered, "dropped": reports[dropping].stats["dropped"],
             "confirmed to the killed program": sum(flushed.values()),
             "delivered of it": client.received(killed)},
        )  # fmt: skip
        assert (client.total, client.repeated, client.disordered) == (stored, 0, 0)
        assert client.gaps == []
        # A source that waits loses nothing. What a killed program knew to be published was
        # delivered, and perhaps some more.
        for name, last in reports[waiting].flushed.items():
            assert client.counts[name].keys() == set(range(1, last + 1))
        for name, last in flushed.items():
            assert client.counts[name].keys() >= set(range(1, last + 1))
        for plan in (waiting, dropping):
            stats = reports[plan].stats
            assert stats["accepted"] == sum(reports[plan].flushed.values())
            assert stats["accepted"] == stats["published"] + stats["dropped"]
            assert stats["published"] == client.received(plan)
            assert stats["shared_streams"]
        dropped = reports[dropping].stats["dropped"]
        assert reports[dropping].stats["dropped_by_reason"]["no_room"] == dropped > 0
        assert reports[waiting].stats["dropped"] == 0
