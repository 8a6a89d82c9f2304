/** The chart: candles and volume, and the midpoint of the quotes as a line. */

import {
  CandlestickSeries,
  CrosshairMode,
  HistogramSeries,
  LineSeries,
  createChart,
} from "lightweight-charts";
import * as format from "./format.js";

const CANDLES_MAX = 2_000;
/** The library keeps all data it receives; at this many candles, we set the most recent ones anew. */
const CANDLES_KEPT_MAX = 3_000;
/** At most this many candles are updated one by one. */
const LATE_MAX = 10;
const VOLUME = "volume";

export class Chart {
  #chart;
  #candles;
  #volume;
  #quotes;
  #legend;
  #step = 1;
  #decimals = NaN;
  #rows = [];
  #colours = {};
  /** The candle under the mouse; undefined if the mouse is elsewhere. */
  #pointedAt = undefined;

  /**
   * @param {HTMLElement} element
   * @param {HTMLElement} legend shows the candle under the crosshair, or else the last one
   */
  constructor(element, legend) {
    this.#legend = legend;
    this.#chart = createChart(element, {
      autoSize: true,
      // The logo would add an inline style to the page, which the policy forbids. The page itself
      // links to the authors of the library.
      layout: { attributionLogo: false },
      crosshair: { mode: CrosshairMode.Normal },
      timeScale: { timeVisible: true, secondsVisible: true, borderVisible: false, rightOffset: 4, barSpacing: 7 },
      rightPriceScale: { borderVisible: false, entireTextOnly: true, scaleMargins: { top: 0.14, bottom: 0.22 } },
    });
    this.#volume = this.#chart.addSeries(HistogramSeries, {
      priceScaleId: VOLUME,
      priceFormat: { type: "volume" },
      lastValueVisible: false,
      priceLineVisible: false,
    });
    this.#chart.priceScale(VOLUME).applyOptions({ scaleMargins: { top: 0.84, bottom: 0 } });
    this.#quotes = this.#chart.addSeries(LineSeries, {
      lineWidth: 1,
      lastValueVisible: false,
      priceLineVisible: false,
      crosshairMarkerVisible: false,
    });
    this.#candles = this.#chart.addSeries(CandlestickSeries, { borderVisible: false });
    this.#chart.subscribeCrosshairMove(({ time }) => {
      this.#pointedAt = time;
      this.#updateLegend();
    });
    this.recolour();
  }

  /** Read the colours from the style sheet, after a change of theme. */
  recolour() {
    const colour = (name) => resolved(this.#legend, name);
    const [up, down, quiet, line] = ["up-candle", "down-candle", "quiet", "grid"].map(colour);
    this.#colours = { up: colour("up-volume"), down: colour("down-volume") };
    this.#chart.applyOptions({
      layout: {
        background: { color: "transparent" },
        textColor: quiet,
        fontFamily: getComputedStyle(document.body).fontFamily,
        fontSize: 11,
      },
      grid: { vertLines: { color: line }, horzLines: { color: line } },
      crosshair: {
        vertLine: { color: quiet, labelBackgroundColor: colour("label") },
        horzLine: { color: quiet, labelBackgroundColor: colour("label") },
      },
    });
    this.#candles.applyOptions({ upColor: up, downColor: down, wickUpColor: up, wickDownColor: down });
    this.#quotes.applyOptions({ color: colour("quote-line") });
    this.#rows = [];
  }

  /** @param {boolean} shown whether to show the line of quotes */
  showQuotes(shown) {
    this.#quotes.applyOptions({ visible: shown });
  }

  /** The length of a candle in seconds. */
  get step() {
    return this.#step;
  }

  /** @param {number} step length of a candle in seconds */
  setStep(step) {
    this.#step = step;
    this.#rows = [];
    this.#chart.applyOptions({ timeScale: { secondsVisible: step < 60 } });
    this.#chart.timeScale().resetTimeScale();
  }

  /** Start over, with another symbol or with other trades. */
  restart() {
    this.#rows = [];
    this.#chart.timeScale().resetTimeScale();
  }

  /** Whether the last candle is in view; the user may have scrolled back to older ones. */
  get isFollowing() {
    return this.#chart.timeScale().scrollPosition() >= 0;
  }

  /** Draw what has changed, and do nothing if nothing has. Returns whether there is a candle. */
  draw(candles, decimals) {
    if (decimals !== this.#decimals) this.#fit(decimals);
    const last = this.#rows.at(-1);
    if (last && candles.changedFrom === Infinity) return this.#rows.some(isTraded);
    const changed = last ? candles.rollUp(this.#step, candles.changedFrom) : [];
    const fresh = !last || this.#rows.length > CANDLES_KEPT_MAX || !this.#canUpdate(changed, last);
    if (fresh) this.#drawAll(candles.rollUp(this.#step, -Infinity, CANDLES_MAX));
    else this.#drawChanges(changed, last.time);
    candles.markDrawn();
    this.#updateLegend();
    return this.#rows.some(isTraded);
  }

  #drawAll(rows) {
    this.#rows = rows;
    const traded = rows.filter(isTraded);
    this.#volume.setData(traded.map(this.#bar));
    this.#quotes.setData(rows.filter(isQuoted).map(point));
    this.#candles.setData(traded.map(candle));
  }

  /** Whether all changes are at the end, or in a few candles that are already drawn. */
  #canUpdate(rows, last) {
    return (
      rows.length < LATE_MAX &&
      rows.every((row) => {
        if (row.time >= last.time) return true;
        const drawn = this.#rows[this.#indexOf(row.time)];
        return drawn && isTraded(drawn) === isTraded(row) && isQuoted(drawn) === isQuoted(row);
      })
    );
  }

  #drawChanges(rows, lastTime) {
    for (const row of rows) {
      const at = this.#indexOf(row.time);
      this.#rows[at < 0 ? this.#rows.length : at] = row;
      const late = row.time < lastTime;
      if (isQuoted(row)) this.#quotes.update(point(row), late);
      if (!isTraded(row)) continue;
      this.#volume.update(this.#bar(row), late);
      this.#candles.update(candle(row), late);
    }
  }

  #indexOf(time) {
    return this.#rows.findLastIndex((each) => each.time === time);
  }

  #bar = ({ time, open, close, volume }) => {
    const color = close < open ? this.#colours.down : this.#colours.up;
    return { time, value: volume, color };
  };

  #fit(decimals) {
    this.#decimals = decimals;
    // The library's own formats stop at about ten decimals.
    const formatter = (price) => format.price(price, decimals);
    const priceFormat = { type: "custom", minMove: 1 / 10 ** decimals, formatter };
    for (const series of [this.#candles, this.#quotes]) series.applyOptions({ priceFormat });
  }

  #updateLegend() {
    const row =
      this.#pointedAt === undefined
        ? this.#rows.findLast(isTraded)
        : this.#rows.find((each) => each.time === this.#pointedAt);
    if (!row || !isTraded(row)) {
      this.#legend.textContent = "";
      return;
    }
    const price = (value) => format.price(value, this.#decimals);
    this.#legend.dataset.move = row.close < row.open ? "down" : "up";
    this.#legend.textContent =
      `O\u00a0${price(row.open)}  H\u00a0${price(row.high)}  L\u00a0${price(row.low)}  C\u00a0${price(row.close)}` +
      `  V\u00a0${format.size(row.volume)}`;
  }
}

/** The value of a style sheet's colour in the current theme. */
function resolved(element, name) {
  element.style.color = `var(--${name})`;
  const { color } = getComputedStyle(element);
  element.style.color = "";
  return color;
}

// The chart would reserve room for a time without a value, and the view does not follow when it is filled.
const isTraded = ({ open }) => !Number.isNaN(open);
const isQuoted = ({ mid }) => !Number.isNaN(mid);
const point = ({ time, mid }) => ({ time, value: mid });
const candle = ({ time, open, high, low, close }) => ({ time, open, high, low, close });
