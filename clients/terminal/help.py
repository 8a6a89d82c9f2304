"""The page that says what the keys do."""

from __future__ import annotations

from typing import Final

HELP: Final = (
    ("  ↑ ↓  k j       ", "choose the symbol above or below"),
    ("  PgUp PgDn g G  ", "a page up or down; the first, the last"),
    ("  Enter          ", "candles of the chosen symbol, and back"),
    ("  1 2 3 4        ", "candles of 1 s, 5 s, 1 min, 5 min"),
    ("  /              ", "search: only symbols that contain what you type; Esc shows all"),
    ("  s              ", "sort by symbol, ticks/s, change, volume, last price"),
    ("  p              ", "pause what is shown; ticks are taken and accounted for meanwhile"),
    ("  a              ", "audit: what became of every tick"),
    ("  e              ", "change between JSON and MessagePack: connects again and goes on"),
    ("  Esc            ", "back to the table"),
    ("  q  Ctrl-C      ", "quit"),
    ("", ""),
    ("  ", "Change, volume and the sparkline count from when you began to watch."),
    ("  ", "The sparkline has a point a second, and the latest price at its right end."),
    ("  ", "Rows that are not sorted by symbol keep their places for two seconds."),
)
"""Keys, and what they do."""
