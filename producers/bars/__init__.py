"""Bars made of trades: `tickcast bars`.

Trades of a feed come in; finished bars go out. `series` holds the rules, `bar_maker` the I/O.
"""
