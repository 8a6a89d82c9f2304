/**
 * Candles of one symbol, built from its trades, with the midpoint of its quotes. They are stored by the
 * second in typed buffers of a fixed size, and rolled up to the timeframe on display.
 */

const CAPACITY = 40_000;
const COLUMNS = ["time", "open", "high", "low", "close", "volume", "mid"];

/** Rows in ascending order of time. A row without a trade has an open of NaN. */
export class Candles {
  /** The first second that has changed since the last `markDrawn`; Infinity if nothing has. */
  changedFrom = Infinity;
  size = 0;
  #capacity;
  #rows = {};

  constructor(capacity = CAPACITY) {
    this.#capacity = capacity;
    for (const name of COLUMNS) this.#rows[name] = new Float64Array(capacity);
  }

  clear() {
    this.size = 0;
    this.changedFrom = -Infinity;
  }

  /** Forget all trades or all quotes, and the seconds that are then empty. */
  forget(channel) {
    const names = channel === "trades" ? ["open", "high", "low", "close"] : ["mid"];
    for (const name of names) this.#rows[name].fill(NaN, 0, this.size);
    if (channel === "trades") this.#rows.volume.fill(0, 0, this.size);
    const { open, mid } = this.#rows;
    let kept = 0;
    for (let at = 0; at < this.size; at++) {
      if (Number.isNaN(open[at]) && Number.isNaN(mid[at])) continue;
      for (const name of COLUMNS) this.#rows[name][kept] = this.#rows[name][at];
      kept += 1;
    }
    this.size = kept;
    this.changedFrom = -Infinity;
  }

  /** @param {number} ms time of the trade or quote, milliseconds since 1970 */
  addTrade(ms, price, size) {
    const { open, high, low, close, volume } = this.#rows;
    const at = this.#rowAt(Math.floor(ms / 1000));
    if (at < 0) return;
    if (Number.isNaN(open[at])) {
      open[at] = high[at] = low[at] = close[at] = price;
      volume[at] = size;
      return;
    }
    if (price > high[at]) high[at] = price;
    if (price < low[at]) low[at] = price;
    close[at] = price;
    volume[at] += size;
  }

  /** @param {number} mid the midpoint between bid and ask */
  addQuote(ms, mid) {
    const at = this.#rowAt(Math.floor(ms / 1000));
    if (at >= 0) this.#rows.mid[at] = mid;
  }

  /** Mark all changes as drawn. */
  markDrawn() {
    this.changedFrom = Infinity;
  }

  /**
   * Roll up the stored seconds from a point in time on.
   *
   * @param {number} step seconds of a candle
   * @param {number} [from] seconds since 1970; the candle that contains it is included whole
   * @param {number} [limit] return only the last candles, up to this number
   * @returns {{time: number, open: number, high: number, low: number, close: number,
   *   volume: number, mid: number}[]}
   */
  rollUp(step, from = -Infinity, limit = Infinity) {
    const { time, open, high, low, close, volume, mid } = this.#rows;
    const first = Math.floor(from / step) * step;
    const found = [];
    let candle;
    // Start from the end, so that asking for the last candles costs nothing extra.
    for (let at = this.size - 1; at >= 0 && time[at] >= first; at--) {
      const start = Math.floor(time[at] / step) * step;
      if (candle?.time !== start) {
        if (found.length === limit) break;
        candle = { time: start, open: NaN, high: -Infinity, low: Infinity, close: NaN, volume: 0, mid: NaN };
        found.push(candle);
      }
      if (Number.isNaN(candle.mid)) candle.mid = mid[at];
      if (Number.isNaN(open[at])) continue;
      candle.open = open[at];
      if (Number.isNaN(candle.close)) candle.close = close[at];
      candle.high = Math.max(candle.high, high[at]);
      candle.low = Math.min(candle.low, low[at]);
      candle.volume += volume[at];
    }
    return found.reverse();
  }

  /** The row of a second, created if there is none; -1 if it is older than all that is kept. */
  #rowAt(second) {
    const { time } = this.#rows;
    let at = this.#after(second);
    if (at > 0 && time[at - 1] === second) at -= 1;
    else at = this.#insert(at, second);
    if (at >= 0 && second < this.changedFrom) this.changedFrom = second;
    return at;
  }

  /** The number of rows that are not later than a second; nearly always all of them. */
  #after(second) {
    const { time } = this.#rows;
    let [low, high] = [0, this.size];
    if (high === 0 || time[high - 1] <= second) return high;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (time[middle] <= second) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #insert(at, second) {
    if (this.size === this.#capacity) {
      const dropped = Math.ceil(this.#capacity / 4);
      if (at < dropped) return -1;
      for (const name of COLUMNS) this.#rows[name].copyWithin(0, dropped);
      this.size -= dropped;
      at -= dropped;
    }
    for (const name of COLUMNS) {
      const column = this.#rows[name];
      if (at < this.size) column.copyWithin(at + 1, at, this.size);
      column[at] = name === "volume" ? 0 : NaN;
    }
    this.#rows.time[at] = second;
    this.size += 1;
    return at;
  }
}
