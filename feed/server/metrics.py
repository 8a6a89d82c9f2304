"""The server's metrics in Prometheus's format; `docs/metrics.md` lists them.

No label contains a symbol or a client, so the number of series is fixed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from feed.access.admission import REFUSALS
from feed.fanout.counters import BucketCounts
from feed.server.engine import Engine
from feed.transport.http_rules import MALFORMED, STALLED
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import CloseCode
from tickcast.wire.sequence import GapReason

_CLOSE_CODES: Final = frozenset(CloseCode) | {1001, 1003, 1005, 1006}
"""Close codes with their own label. Others share one, because clients can send any number."""
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def render_metrics(engine: Engine) -> bytes:
    """Render all metrics of a server in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_FeedCollector(engine))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _FeedCollector(Collector):
    """Reads the engine's counters at each scrape, which keeps counting itself cheap."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        yield from self._clients()
        yield from self._flow()
        yield from self._past()
        yield from self._broker()
        yield from self._tasks()

    def _clients(self) -> Iterator[Metric]:
        sessions = self._engine.sessions
        counters = self._engine.hub.counters
        by_encoding = Counter(session.encoding for session in sessions)
        connections = GaugeMetricFamily(
            "tickcast_connections", "Clients connected", labels=["encoding"]
        )
        for encoding in Encoding:
            connections.add_metric([encoding.value], by_encoding[encoding])
        yield connections
        yield _counter("connections_opened", "Clients that have connected", counters.connections)
        closed = CounterMetricFamily(
            "tickcast_connections_closed", "Connections that ended, by close code", labels=["code"]
        )
        codes: Counter[str] = Counter()
        for code, count in counters.closed.items():
            codes[str(code) if code in _CLOSE_CODES else "other"] += count
        for label, count in sorted(codes.items()):
            closed.add_metric([label], count)
        yield closed
        refused = CounterMetricFamily(
            "tickcast_refused",
            "Handshakes, credentials and requests turned away",
            labels=["reason"],
        )
        for reason in (*REFUSALS, STALLED, MALFORMED):
            refused.add_metric([reason], counters.refused[reason])
        yield refused
        yield _counter(
            "messages_rate_limited", "Messages refused, too many having come", counters.rate_limited
        )
        hub = self._engine.hub
        held = sum(len(session.subscriptions) for session in sessions)
        yield _gauge("subscriptions", "Symbols and wildcards that clients hold", held)
        yield _gauge("streams", "Streams carried for them", len(hub.streams.by_key))
        yield _gauge("audiences", "Groups of clients that get the same bytes", len(hub.groups))
        yield _gauge(
            "outbox_bytes",
            "Bytes waiting for clients",
            sum(each.outbox.waiting_bytes for each in sessions),
        )
        yield _gauge(
            "slow_clients",
            "Clients whose ticks are being merged or skipped, because they do not read",
            sum(session.outbox.is_slow for session in sessions),
        )

    def _flow(self) -> Iterator[Metric]:
        counters = self._engine.hub.counters
        yield _counter("ticks_in", "Ticks taken from Redis", counters.ticks_in)
        yield _counter("ticks_out", "Ticks sent, over all clients", counters.ticks_out)
        yield _counter("frames_out", "Frames of ticks sent, over all clients", counters.frames_out)
        yield _counter("bytes_out", "Bytes of ticks sent, over all clients", counters.bytes_out)
        merged = CounterMetricFamily(
            "tickcast_ticks_merged",
            "Ticks replaced by later ones: because clients asked for it, or were slow",
            labels=["reason"],
        )
        merged.add_metric(["conflate_ms"], counters.conflated)
        merged.add_metric(["slow"], counters.slow_merged)
        yield merged
        yield _counter("ticks_skipped", "Ticks left out for slow clients", counters.slow_skipped)
        yield _histogram("flush_seconds", "Time that a flush took", counters.flush_s)
        yield _histogram("flush_ticks", "Ticks taken into a flush", counters.flush_ticks)
        yield _histogram(
            "lag_seconds", "From a tick's publishing to the flush that sent it", counters.lag_s
        )

    def _broker(self) -> Iterator[Metric]:
        connected = self._engine.upstream.subscriber.connected
        yield _gauge("redis_up", "1 while connected to Redis", int(connected))
        yield _counter(
            "redis_reconnects",
            "Connections to Redis after the first",
            self._engine.upstream.subscriber.reconnects,
        )
        yield _gauge(
            "redis_heartbeat_seconds",
            "How long the last message of the server to itself took through Redis",
            self._engine.upstream.subscriber.delay_s,
        )

    def _tasks(self) -> Iterator[Metric]:
        tasks = self._engine.tasks
        restarts = CounterMetricFamily(
            "tickcast_task_restarts",
            "Failures of the tasks that serve all clients; each is started again",
            labels=["task"],
        )
        for name, count in sorted(tasks.restarts.items()):
            restarts.add_metric([name], count)
        yield restarts
        yield _gauge("tasks_down", "Such tasks that wait for their next start", len(tasks.down))

    def _past(self) -> Iterator[Metric]:
        counters = self._engine.hub.counters
        yield _counter(
            "history_ticks", "Ticks of the past sent, over all clients", counters.history_out
        )
        yield _gauge(
            "catching_up_clients",
            "Clients that are being sent the past",
            len(self._engine.backfill),
        )
        yield _gauge(
            "catching_up_streams",
            "Streams that they have not caught up with, over all of them",
            self._engine.backfill.streams,
        )
        yield _counter(
            "history_failures",
            "Reads of history that were given up, with an error to the client",
            self._engine.backfill.failed,
        )
        yield _counter(
            "replayed_ticks", "Ticks of tapes sent, over all clients", counters.replayed_out
        )
        yield _gauge(
            "private_replays",
            "Tapes being played to single clients",
            len(self._engine.private_replays),
        )
        gaps = CounterMetricFamily(
            "tickcast_gaps", "Gaps told to clients, by what made them", labels=["reason"]
        )
        for reason in GapReason:
            gaps.add_metric([reason.value], counters.gaps[reason.value])
        yield gaps
        yield _counter("ticks_lost", "Ticks in those gaps, as far as it is known", counters.lost)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"tickcast_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"tickcast_{name}", text, value=value)


def _histogram(name: str, text: str, histogram: BucketCounts) -> Metric:
    ends = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
    buckets = list(zip(ends, accumulate(histogram.counts), strict=True))
    return HistogramMetricFamily(f"tickcast_{name}", text, buckets, histogram.total)
