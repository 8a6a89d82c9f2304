"""Chart a replay: draw the trades that a server has in history as one-minute candles in a PNG.

Run `tickcast serve` in one terminal, and this in another:

    tickcast replay trades.csv.gz --symbol ES --speed max
    python examples/chart.py ES --out es.png

The script is divided into cells (`# %%`), which editors and notebooks run one by one. It needs
polars and matplotlib.
"""

# %% What to chart
from __future__ import annotations

import argparse

import polars as pl
from matplotlib import pyplot as plt

from tickcast import Time, Window
from tickcast.blocking import connect

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("symbol", nargs="?", default="ES")
parser.add_argument("--url", default="ws://127.0.0.1:8000/stream")
parser.add_argument("--trades", type=int, default=10_000, help="the latest, so many")
parser.add_argument("--every", default="1m", help="the length of a candle")
parser.add_argument("--out", default="chart.png")
options = parser.parse_args()

# %% Read all history, up to now or to the current position of a replay
window = Window(ticks_max=options.trades)
began = Time.now()
with connect(options.url, encoding="msgpack") as stream:
    stream.subscribe(trades=[options.symbol], start=0)
    while (ticks := stream.read(timeout_s=2)) and ticks[-1].time < began:
        window.add(ticks)
trades = window.trades.to_polars()
if trades.is_empty():
    raise SystemExit(f"no trades of {options.symbol} at {options.url}")

# %% Candles
candles = trades.group_by_dynamic("time", every=options.every).agg(
    open=pl.col("price").first(),
    high=pl.col("price").max(),
    low=pl.col("price").min(),
    close=pl.col("price").last(),
    volume=pl.col("size").sum(),
)
print(candles)

# %% Draw the chart
figure, (prices, volumes) = plt.subplots(
    2, sharex=True, figsize=(11, 6), height_ratios=(3, 1), layout="constrained"
)
places = range(len(candles))
colours = ["#1a9a6c" if row["close"] >= row["open"] else "#d6495b" for row in candles.to_dicts()]
prices.vlines(places, candles["low"], candles["high"], colours, linewidth=1)
bodies = (candles["close"] - candles["open"]).to_list()
prices.bar(places, bodies, 0.7, candles["open"].to_list(), color=colours)
prices.set_title(f"{options.symbol}: {len(trades):,} trades", loc="left")
volumes.bar(places, candles["volume"].to_list(), 0.7, color=colours)
marks = places[:: max(1, len(candles) // 8)]
volumes.set_xticks(marks, [f"{candles['time'][at]:%d %b\n%H:%M}" for at in marks])
for axes in (prices, volumes):
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(b=False)
figure.savefig(options.out, dpi=120)
print(f"{len(candles)} candles in {options.out}")
