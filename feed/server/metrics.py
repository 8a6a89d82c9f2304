"""The server's metrics in Prometheus's format, and their endpoint; `docs/metrics.md` lists them.

No label contains a symbol or a client, so the number of series is fixed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from feed.access.admission import REFUSALS
from feed.fanout.counters import BucketCounts
from feed.server.engine import Engine
from feed.server.middleware import RequestLimits, SecurityHeaders
from feed.server.running import FeedServer, server_config
from feed.transport.http_messages import MALFORMED, STALLED
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import CloseCode
from tickcast.wire.sequence import GapReason

# Few programs scrape. A new connection replaces the oldest one that has sent no request.
_CONNECTIONS_MAX: Final = 32
# Close codes with their own label. Others share one, because clients can send any number.
_CLOSE_CODES: Final = frozenset(CloseCode) | {1001, 1003, 1005, 1006}
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def answer_scrape(request: Request, engine: Engine) -> Response:
    """Return all metrics, or 401 if a token is set and the request does not carry it.

    Source: RFC 6750, sections 2.1 and 3.
    """
    token = engine.settings.metrics_token
    if token is not None and not _carries(request.headers.get("authorization", ""), token):
        return PlainTextResponse(
            "a token is needed\n", 401, headers={"WWW-Authenticate": 'Bearer realm="metrics"'}
        )
    return Response(_render(engine), media_type=_CONTENT_TYPE)


def _carries(authorization: str, token: str) -> bool:
    scheme, _, given = authorization.partition(" ")
    # In constant time, so that timing does not reveal how much of a guess is right.
    right = hmac.compare_digest(given.strip().encode(), token.encode())
    return right and scheme.lower() == "bearer"


@contextlib.asynccontextmanager
async def serving_metrics(engine: Engine, listener: socket.socket) -> AsyncIterator[None]:
    """Serve only `/metrics`, on a separate listening socket."""

    async def metrics(request: Request) -> Response:
        return answer_scrape(request, engine)

    app = Starlette(routes=[Route("/metrics", metrics)])
    app.router.redirect_slashes = False
    config = server_config(
        SecurityHeaders(RequestLimits(app)),
        engine.settings,
        ws="none",
        lifespan="off",
        http_connections_max=_CONNECTIONS_MAX,
    )
    server = _MetricsServer(config)
    server.state = {
        "refused": engine.hub.counters.refused,
        "turn_budget": engine.turn_budget,
        "address_limits": engine.address_limits,
    }
    task = asyncio.create_task(server.serve([listener]), name="metrics")
    try:
        yield
    finally:
        server.should_exit = True
        await task


class _MetricsServer(FeedServer):
    """A second server in the process, which leaves the signals to the first.

    Attributes:
        state: the lifespan state that the protocol class expects.
    """

    state: Mapping[str, Any]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifespan.state.update(self.state)
        await super().startup(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _render(engine: Engine) -> bytes:
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
        yield from self._ticks()
        yield from self._history()
        yield from self._broker()
        yield from self._tasks()

    def _clients(self) -> Iterator[Metric]:
        sessions, counters = self._engine.sessions, self._engine.hub.counters
        encodings = Counter(session.encoding for session in sessions)
        yield _labelled(
            GaugeMetricFamily, "connections", "Clients connected", "encoding",
            {encoding.value: encodings[encoding] for encoding in Encoding},
        )  # fmt: skip
        yield _counter("connections_opened", "Clients that have connected", counters.connections)
        closed: Counter[str] = Counter()
        for code, count in counters.closed.items():
            closed[str(code) if code in _CLOSE_CODES else "other"] += count
        yield _labelled(
            CounterMetricFamily, "connections_closed", "Connections that ended, by close code",
            "code", dict(sorted(closed.items())),
        )  # fmt: skip
        yield _labelled(
            CounterMetricFamily, "refused", "Handshakes, credentials and requests refused",
            "reason",
            {reason: counters.refused[reason] for reason in (*REFUSALS, STALLED, MALFORMED)},
        )  # fmt: skip
        yield _counter(
            "messages_rate_limited", "Messages refused by the rate limit", counters.rate_limited
        )
        hub = self._engine.hub
        held = sum(len(session.subscriptions) for session in sessions)
        yield _gauge("subscriptions", "Symbols and wildcards that clients hold", held)
        yield _gauge("streams", "Streams carried for them", len(hub.streams.by_key))
        yield _gauge(
            "subscriber_groups", "Groups of clients that get the same bytes", len(hub.groups)
        )
        waiting = sum(session.outbox.waiting_bytes for session in sessions)
        yield _gauge("outbox_bytes", "Bytes waiting for clients", waiting)
        yield _gauge(
            "slow_clients",
            "Clients whose ticks are being merged or skipped, because they do not read",
            sum(session.outbox.is_slow for session in sessions),
        )

    def _ticks(self) -> Iterator[Metric]:
        counters = self._engine.hub.counters
        yield _counter("ticks_in", "Ticks received from Redis", counters.ticks_in)
        yield _counter("ticks_out", "Ticks sent, over all clients", counters.ticks_out)
        yield _counter("frames_out", "Frames of ticks sent, over all clients", counters.frames_out)
        yield _counter("bytes_out", "Bytes of ticks sent, over all clients", counters.bytes_out)
        yield _labelled(
            CounterMetricFamily, "ticks_merged",
            "Ticks replaced by later ones: because clients asked for it, or were slow", "reason",
            {"conflate_ms": counters.conflated, "slow": counters.slow_merged},
        )  # fmt: skip
        yield _counter("ticks_skipped", "Ticks left out for slow clients", counters.slow_skipped)
        yield _histogram("flush_seconds", "Time that a flush took", counters.flush_s)
        yield _histogram("flush_ticks", "Ticks in a flush", counters.flush_ticks)
        yield _histogram(
            "lag_seconds", "From a tick's publishing to the flush that sent it", counters.lag_s
        )

    def _history(self) -> Iterator[Metric]:
        counters, backfill = self._engine.hub.counters, self._engine.backfill
        yield _counter(
            "history_ticks", "Ticks of history sent, over all clients", counters.history_out
        )
        yield _gauge("catching_up_clients", "Clients that are being sent history", len(backfill))
        yield _gauge(
            "catching_up_streams",
            "Streams that they have not caught up with, over all of them",
            backfill.streams,
        )
        yield _counter(
            "history_failures",
            "Reads of history that were given up, with an error to the client",
            backfill.failed,
        )
        yield _counter(
            "replayed_ticks", "Ticks of tapes sent, over all clients", counters.replayed_out
        )
        replays = len(self._engine.private_replays)
        yield _gauge("private_replays", "Tapes being played to single clients", replays)
        yield _labelled(
            CounterMetricFamily, "gaps", "Gaps reported to clients, by cause", "reason",
            {reason.value: counters.gaps[reason.value] for reason in GapReason},
        )  # fmt: skip
        yield _counter("ticks_lost", "Ticks in those gaps, as far as it is known", counters.lost)

    def _broker(self) -> Iterator[Metric]:
        subscriber = self._engine.upstream.subscriber
        yield _gauge("redis_up", "1 while connected to Redis", int(subscriber.connected))
        yield _counter(
            "redis_reconnects", "Connections to Redis after the first", subscriber.reconnects
        )
        yield _gauge(
            "redis_heartbeat_seconds",
            "How long the last message of the server to itself took through Redis",
            subscriber.delay_s,
        )

    def _tasks(self) -> Iterator[Metric]:
        tasks = self._engine.tasks
        yield _labelled(
            CounterMetricFamily, "task_restarts",
            "Failures of the tasks that serve all clients; each is started again", "task",
            dict(sorted(tasks.restarts.items())),
        )  # fmt: skip
        yield _gauge("tasks_down", "Such tasks that wait for their next start", len(tasks.down))


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"tickcast_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"tickcast_{name}", text, value=value)


def _labelled(
    kind: type[CounterMetricFamily | GaugeMetricFamily],
    name: str,
    text: str,
    label: str,
    values: Mapping[str, float],
) -> Metric:
    family = kind(f"tickcast_{name}", text, labels=[label])
    for value_of_label, value in values.items():
        family.add_metric([value_of_label], value)
    return family


def _histogram(name: str, text: str, histogram: BucketCounts) -> Metric:
    ends = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
    buckets = list(zip(ends, accumulate(histogram.counts), strict=True))
    return HistogramMetricFamily(f"tickcast_{name}", text, buckets, histogram.total)
