"""Bars made of trades: `tickcast bars`.

Trades of a feed come in; finished bars go out. `series` and `builder` hold the
rules, `follower` reads the trades from Redis, and `bar_maker` publishes the bars.
"""
