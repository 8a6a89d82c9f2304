"""The screen of `tickcast watch`: ticks and keys in, styled lines out. No I/O.

Start with `board.Board`, which owns the rest: `market` keeps the symbols, `view` handles the keys,
and `tables` and `candles` draw the pages.
"""
