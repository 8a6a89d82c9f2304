"""Draws what each scenario does, as SVG beside this file: `make pictures`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from producers.simulation.scenarios import SCENARIOS, generate_scenario
from producers.simulation.synthetic import symbol_names
from tickcast.wire.ticks import Quote, Tick, Trade
from tickcast.wire.times import NS_PER_SECOND, Time

_START: Final = Time.parse("2026-01-05T14:30:00Z")
_RATE: Final = 40.0
_SEED: Final = 7
_WIDTH, _HEIGHT = 760, 330
_LEFT, _RIGHT = 64, 732
_PRICES: Final = (62, 206)
_BELOW: Final = (238, 296)
_STEP_S: Final = 0.1
_PAUSE_S: Final = 1.0
"""After so long without a quote the lines are interrupted."""

AnyTick = TypeVar("AnyTick", bound=Tick)

_STYLE: Final = """
  svg { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; }
  .card { fill: #ffffff; stroke: #d9dee5; }
  .name { fill: #1c2733; font-size: 15px; font-weight: 600; }
  .text { fill: #5a6775; }
  .grid { stroke: #e8ecf1; }
  .event { fill: #f3f0e2; }
  .ask { fill: none; stroke: #c2573f; stroke-width: 1.3; }
  .bid { fill: none; stroke: #2f7d6b; stroke-width: 1.3; }
  .trade { fill: #33475e; opacity: 0.55; }
  .below { fill: #7d93ab; }
  .line { fill: none; stroke: #5f7894; stroke-width: 1.6; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #12181f; stroke: #2a333d; }
    .name { fill: #e6ebf0; }
    .text { fill: #93a1af; }
    .grid { stroke: #212a33; }
    .event { fill: #26251c; }
    .ask { stroke: #e58a73; }
    .bid { stroke: #62b8a4; }
    .trade { fill: #c3d0de; opacity: 0.5; }
    .below { fill: #56697d; }
    .line { stroke: #8fa6bf; }
  }
"""


class View(NamedTuple):
    """What of a scenario is shown.

    Attributes:
        span: from when to when, in seconds.
        events: the times when it is not as usual.
        below: what stands below the prices: `rate`, `ids` or `skew`.
    """

    span: tuple[float, float]
    events: Sequence[tuple[float, float]]
    below: str = "rate"


VIEWS: Final = {
    "open-burst": View((8, 14), [(10, 11)]),
    "flash-crash": View((10, 60), [(20, 45)]),
    "halt": View((10, 60), [(20, 40)]),
    "crossed": View((3, 8), [(5, 5.5)]),
    "gap": View((10, 35), [(20, 25)], "ids"),
    "quiet": View((0, 90), [(10, 60), (70, 90)]),
    "skewed-clock": View((0, 60), [(20, 40), (40, 60)], "skew"),
}


class Axis(NamedTuple):
    """From values to pixels: straight, or by the logarithm."""

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    def of(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)


def draw(name: str) -> str:
    """One scenario as an SVG."""
    view = VIEWS[name]
    begin, end = view.span
    ticks = generate_scenario(name, symbol_names(1), _RATE, _SEED, _START)
    shown = [tick for tick in takewhile(lambda tick: _at(tick) < end, ticks) if _at(tick) >= begin]
    across = Axis(begin, end, _LEFT, _RIGHT)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{name}</title><style>{_STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" rx="8"/>',
        _text(16, 26, name, "name"),
        _text(16, 45, SCENARIOS[name].text, "text"),
    ]
    for since, until in view.events:
        left, right = across.of(max(since, begin)), across.of(min(until, end))
        parts.append(_rect("event", left, right, _PRICES[0], _BELOW[1]))
    parts += _legend()
    parts += _seconds(across)
    parts += _prices(shown, across)
    below = {"rate": _rates, "ids": _ids, "skew": _skews}[view.below]
    parts += below(name, shown, across)
    return "\n".join([*parts, "</svg>", ""])


def _at(tick: Tick) -> float:
    return (tick.time - _START) / NS_PER_SECOND


def _prices(ticks: Sequence[Tick], across: Axis) -> list[str]:
    quotes = [tick for tick in ticks if isinstance(tick, Quote)]
    trades = [tick for tick in ticks if isinstance(tick, Trade)]
    values = [*(q.bid_price for q in quotes), *(q.ask_price for q in quotes)]
    room = (max(values) - min(values)) * 0.08
    up = Axis(min(values) - room, max(values) + room, _PRICES[1], _PRICES[0])
    parts = _scale(up, _nice_steps(up.low, up.high, 4), "{:.2f}")
    # One of each step, so that a burst of thousands makes no file of megabytes.
    trades, quotes = list(_by_step(trades).values()), list(_by_step(quotes).values())
    for trade in trades:
        parts.append(
            f'<circle class="trade" cx="{across.of(_at(trade)):.1f}"'
            f' cy="{up.of(trade.price):.1f}" r="1.7"/>'
        )
    parts.append(_stairs("ask", [(_at(quote), quote.ask_price) for quote in quotes], across, up))
    parts.append(_stairs("bid", [(_at(quote), quote.bid_price) for quote in quotes], across, up))
    return parts


def _by_step(ticks: Iterable[AnyTick]) -> dict[int, AnyTick]:
    """The last tick of each step."""
    return {int(_at(tick) / _STEP_S): tick for tick in ticks}


def _stairs(name: str, points: Sequence[tuple[float, float]], across: Axis, up: Axis) -> str:
    """What holds until the next one comes, unless that takes too long."""
    path: list[str] = []
    before: float | None = None
    for at, value in points:
        x, y = across.of(at), up.of(value)
        if before is None or at - before > _PAUSE_S:
            path.append(f"M{x:.1f} {y:.1f}")
        else:
            path.append(f"H{x:.1f}V{y:.1f}")
        before = at
    return f'<path class="{name}" d="{"".join(path)}"/>'


def _rates(name: str, ticks: Sequence[Tick], across: Axis) -> list[str]:
    step = 0.1 if across.high - across.low < 10 else 1.0
    counts: dict[int, int] = {}
    for tick in ticks:
        place = int(_at(tick) / step)
        counts[place] = counts.get(place, 0) + 1
    rates = {place: count / step for place, count in counts.items()}
    most = max(rates.values())
    is_log = most > 20 * _RATE
    up = Axis(1 if is_log else 0, most * 1.1, _BELOW[1], _BELOW[0], is_log)
    marks = [1, 100, 10_000] if is_log else [0, _nice_steps(0, most, 2)[-1]]
    parts = _scale(up, marks, "{:,.0f}")
    parts.append(_text(_LEFT, _BELOW[0] - 6, "ticks per second", "text"))
    for place, rate in rates.items():
        left, right = across.of(place * step) + 0.5, across.of((place + 1) * step) - 0.5
        parts.append(_rect("below", left, min(right, _RIGHT), up.of(rate), _BELOW[1]))
    return parts


def _ids(name: str, ticks: Sequence[Tick], across: Axis) -> list[str]:
    trades = [tick for tick in ticks if isinstance(tick, Trade)]
    ids = [int(trade.id or 0) for trade in trades]
    up = Axis(ids[0], ids[-1], _BELOW[1], _BELOW[0])
    jump, after = max(pairwise(ids), key=lambda pair: pair[1] - pair[0])
    parts = _scale(up, [ids[0], ids[-1]], "{:.0f}")
    words = f"id of the trades: after {jump} comes {after}"
    parts.append(_text(_LEFT, _BELOW[0] - 6, words, "text"))
    for trade, number in zip(trades, ids, strict=True):
        x, y = across.of(_at(trade)), up.of(number)
        parts.append(f'<circle class="below" cx="{x:.1f}" cy="{y:.1f}" r="1.5"/>')
    return parts


def _skews(name: str, ticks: Sequence[Tick], across: Axis) -> list[str]:
    stamp = SCENARIOS[name].stamp
    points = [
        (_at(tick), _at(stamp(tick, _START)) - _at(tick)) for tick in _by_step(ticks).values()
    ]
    up = Axis(-6, 6, _BELOW[1], _BELOW[0])
    parts = _scale(up, [-5, 0, 5], "{:.0f} s")
    parts.append(_text(_LEFT, _BELOW[0] - 6, "the venue's clock is ahead by", "text"))
    return [*parts, _stairs("line", points, across, up)]


def _legend() -> list[str]:
    parts = []
    for x, style in ((594, "ask"), (644, "bid")):
        parts.append(f'<path class="{style}" d="M{x} 22h14"/>')
        parts.append(_text(x + 19, 26, style, "text"))
    parts.append('<circle class="trade" cx="692" cy="22" r="1.7"/>')
    parts.append(_text(699, 26, "trade", "text"))
    return parts


def _scale(up: Axis, marks: Sequence[float], form: str) -> list[str]:
    parts = []
    for mark in marks:
        y = up.of(mark)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="text" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{form.format(mark)}</text>"
        )
    return parts


def _seconds(across: Axis) -> list[str]:
    return [
        f'<text class="text" x="{across.of(mark):.1f}" y="316" text-anchor="middle">'
        f"{mark:g} s</text>"
        for mark in _nice_steps(across.low, across.high, 6)
    ]


def _nice_steps(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough)
    first = math.ceil(low / step)
    return [round(each * step, 6) for each in range(first, math.floor(high / step + 1e-9) + 1)]


def _text(x: float, y: float, words: str, style: str) -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{words}</text>'


def _rect(style: str, left: float, right: float, top: float, bottom: float) -> str:
    return (
        f'<rect class="{style}" x="{left:.1f}" y="{top:.1f}"'
        f' width="{max(right - left, 0.5):.1f}" height="{bottom - top:.1f}"/>'
    )


if __name__ == "__main__":
    for each in SCENARIOS:
        Path(__file__).with_name(f"{each}.svg").write_text(draw(each), "utf-8")
