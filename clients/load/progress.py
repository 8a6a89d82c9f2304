"""Progress of a run: one updated line on a terminal, or one line per second elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from clients.load.histogram import LatencyHistogram
from clients.load.recorder import RunRecorder
from clients.load.text import bar, ms

_BAR_WIDTH: Final = 20
_PATIENCE_S: Final = 2.0


class TerminalStage:
    """Draws the progress of the run on a terminal, and removes it at the end."""

    def __init__(self, console: Console, connections: int) -> None:
        self._connections = connections
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> TerminalStage:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, traceback)

    def show(self, phase: str, recorder: RunRecorder, elapsed_s: float, of_s: float) -> None:
        """Redraw the progress."""
        share = min(1.0, elapsed_s / of_s) if of_s else 0.0
        if phase == "connecting":
            share = sum(recorder.settled.values()) / self._connections
        progress = bar(share, _BAR_WIDTH).ljust(_BAR_WIDTH, "·")
        text = Text.assemble(
            (f"{phase:<10}", "bold"), " ", (progress, "cyan"), f" {elapsed_s:3.0f} s   ",
            status(recorder),
        )  # fmt: skip
        text.no_wrap = True
        text.overflow = "ellipsis"
        self._live.update(text, refresh=True)


class LineStage:
    """Prints a line at each new phase or second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: tuple[str, int] | None = None

    def __enter__(self) -> LineStage:
        return self

    def __exit__(self, *details: object) -> None:
        pass

    def show(self, phase: str, recorder: RunRecorder, elapsed_s: float, of_s: float) -> None:
        """Print a line at a new phase or second, once a client is connected or that takes long."""
        if elapsed_s < _PATIENCE_S and not any(recorder.connected.values()):
            return
        news = (phase, int(elapsed_s))
        if news == self._told:
            return
        self._told = news
        line = f"{phase:<10} {elapsed_s:3.0f} s  {status(recorder)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def status(recorder: RunRecorder) -> str:
    """Format the number of connections and the figures of the last full second."""
    parts = [f"{sum(recorder.connected.values()):,} connected"]
    moment = recorder.last_moment()
    if moment is not None and moment.span_s > 0:
        parts.append(f"{moment.ticks / moment.span_s:,.0f} ticks/s")
        latency: LatencyHistogram = moment.latency()
        if latency.count:
            p50, p99 = (ms(latency.quantile_us(share) / 1000) for share in (0.5, 0.99))
            parts.append(f"p50 {p50}, p99 {p99}")
    if recorder.problems:
        parts.append(f"{recorder.problems:,} errors")
    return ", ".join(parts)
