"""The help page, which lists the keys."""

from __future__ import annotations

from typing import Final

HELP: Final = (
    ("  ↑ ↓  k j       ", "choose the symbol above or below"),
    ("  PgUp PgDn g G  ", "a page up or down; the first, the last"),
    ("  Enter          ", "candles of the chosen symbol, and back"),
    ("  1 2 3 4        ", "candles of 1 s, 5 s, 1 min, 5 min"),
    ("  /              ", "search: only symbols that contain what you type"),
    ("  s              ", "sort by symbol, ticks/s, change, volume, last price"),
    ("  p              ", "pause what is shown; no tick is lost by it"),
    ("  a              ", "audit: what became of every tick"),
    ("  e              ", "JSON or MessagePack: connects again and goes on"),
    ("  Esc            ", "back to the table; there: show all, from the top"),
    ("  q  Ctrl-C      ", "quit"),
    ("", ""),
    ("  ", "Change, volume and sparkline count from when you began to watch."),
    ("  ", "The sparkline has a point a second, the latest price at its right end."),
    ("  ", "Sorted by anything but the symbol, rows stay in place for two seconds."),
)
"""Keys and their effects."""
