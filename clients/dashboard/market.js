/** What this page knows of the market: the latest trade and quote of each symbol, rates and trends. All bounded. */

import { decimalsOf } from "./format.js";

const SYMBOLS_MAX = 5_000;
const RATE_SECONDS = 5;
export const TREND_POINTS = 120;
const TREND_STEP_MS = 500;
/** The relative precision of a price that may be lost on display. */
const PRICE_TOLERANCE = 1e-11;
/** A tick that was published this long before the server sent it is history. */
const HISTORY_US = 1_000_000;
/** After a restart the old figures stay at most this long, so that a replay in a loop does not flicker. */
const RESTART_MS = 1_000;

/** Whether a tick is from the past: a snapshot, or sent again after a reconnect. */
export const isHistory = ({ snap, tr, tw }) => snap === true || tw - tr > HISTORY_US;

/** Events a second over the last few whole seconds. */
export class Rate {
  #counts = new Float64Array(RATE_SECONDS + 1);
  #second = 0;
  #since = -1;

  add(now, count = 1) {
    this.#advance(now);
    if (this.#since < 0) this.#since = now;
    this.#counts[this.#second % this.#counts.length] += count;
  }

  read(now) {
    this.#advance(now);
    if (this.#since < 0) return 0;
    const current = this.#second % this.#counts.length;
    const total = this.#counts.reduce((sum, count, at) => (at === current ? sum : sum + count), 0);
    const seconds = this.#second - Math.floor(this.#since / 1000);
    return total / Math.max(1, Math.min(seconds, RATE_SECONDS));
  }

  #advance(now) {
    const second = Math.floor(now / 1000);
    const from = Math.max(this.#second + 1, second - RATE_SECONDS);
    for (let at = from; at <= second; at++) this.#counts[at % this.#counts.length] = 0;
    this.#second = second;
  }
}

/** One price each half second for a minute; unknown prices leave a hole (NaN). */
export class Trend {
  #points = new Float64Array(TREND_POINTS).fill(NaN);
  #slot = 0;
  #price = NaN;

  set(price, now) {
    this.advance(now, true);
    this.#price = price;
    this.#points[this.#slot % TREND_POINTS] = price;
  }

  /** @param {boolean} known whether the price is known to be unchanged since the last call */
  advance(now, known) {
    const slot = Math.floor(now / TREND_STEP_MS);
    const fill = known ? this.#price : NaN;
    const from = Math.max(this.#slot + 1, slot - TREND_POINTS + 1);
    for (let at = from; at <= slot; at++) this.#points[at % TREND_POINTS] = fill;
    this.#slot = slot;
  }

  /** The prices, oldest first. */
  *[Symbol.iterator]() {
    for (let at = 1; at <= TREND_POINTS; at++) {
      yield this.#points[(this.#slot + at) % TREND_POINTS];
    }
  }
}

/** One symbol: its latest trade and quote, and its changes since the page was opened. */
class Instrument {
  last = undefined;
  bid = undefined;
  ask = undefined;
  volume = 0;
  /** Whether trades are missing from the volume. */
  incomplete = false;
  decimals = 2;
  rate = new Rate();
  trend = new Trend();
  #firstTrade = undefined;
  #firstMid = undefined;
  /** When to forget the data of a channel that has restarted, unless new data replaces it before. */
  #forgetAt = { trades: Infinity, quotes: Infinity };

  constructor(symbol) {
    this.symbol = symbol;
  }

  /** Relative change since the page was opened: of trades, or of the midpoint if there are no trades. */
  get change() {
    const [first, now] =
      this.last === undefined ? [this.#firstMid, this.mid] : [this.#firstTrade, this.last];
    return first > 0 ? now / first - 1 : undefined;
  }

  get spread() {
    return this.mid === undefined ? undefined : this.ask - this.bid;
  }

  /** The spread relative to the price. */
  get relativeSpread() {
    return this.mid === undefined ? undefined : (this.ask - this.bid) / this.mid;
  }

  get mid() {
    return this.bid > 0 && this.ask > 0 ? (this.bid + this.ask) / 2 : undefined;
  }

  addTrade(tick, now) {
    this.forgetChannel("trades", Infinity);
    this.last = tick.p;
    this.#firstTrade ??= tick.p;
    this.#fitDecimals(tick.p);
    this.trend.set(tick.p, now);
    // A snapshot is from before the page was opened.
    if (!tick.snap) this.volume += tick.s;
    if (tick.cf) this.incomplete = true;
  }

  addQuote(tick, now) {
    this.forgetChannel("quotes", Infinity);
    this.bid = tick.bp;
    this.ask = tick.ap;
    this.#fitDecimals(tick.bp);
    this.#fitDecimals(tick.ap);
    this.#firstMid ??= this.mid;
    if (this.last === undefined && this.mid !== undefined) this.trend.set(this.mid, now);
  }

  /** A channel has restarted: the next data is from another time. */
  restart(channel, now) {
    if (channel in this.#forgetAt) this.#forgetAt[channel] = Math.min(this.#forgetAt[channel], now + RESTART_MS);
  }

  /** Forget data of a channel that has restarted and sent nothing new in time. */
  forgetOutdated(now) {
    this.forgetChannel("trades", now);
    this.forgetChannel("quotes", now);
  }

  /** Clear the data of a channel that has restarted, when new data arrives or at `now`. */
  forgetChannel(channel, now) {
    const at = this.#forgetAt[channel];
    if (at === Infinity || at > now) return;
    this.#forgetAt[channel] = Infinity;
    if (channel === "trades") {
      this.last = this.#firstTrade = undefined;
      this.volume = 0;
      this.incomplete = false;
      this.trend = new Trend();
    } else {
      this.bid = this.ask = this.#firstMid = undefined;
    }
  }

  #fitDecimals(price) {
    const scaled = price * 10 ** this.decimals;
    if (Math.abs(scaled - Math.round(scaled)) <= PRICE_TOLERANCE * Math.abs(scaled)) return;
    this.decimals = Math.max(this.decimals, decimalsOf(price));
  }
}

/** All symbols that the page has seen and not forgotten. */
export class Market {
  /** @type {Map<string, Instrument>} */
  instruments = new Map();
  /** Trades that arrived, including those that they replace. */
  trades = new Rate();
  /** Whether there are more symbols than are kept. */
  overfull = false;
  tickAt = -Infinity;
  #live = false;

  /** Set whether ticks arrive; without them, no price is known to be unchanged. */
  setLive(live, now) {
    if (live === this.#live) return;
    for (const instrument of this.instruments.values()) instrument.trend.advance(now, this.#live);
    this.#live = live;
  }

  /** Process a trade or a quote as it came off the wire; times of arrival in milliseconds. */
  addTick(tick, now) {
    const instrument = this.instrument(tick.S);
    if (!tick.snap) this.tickAt = now;
    const isLive = !isHistory(tick);
    if (isLive && tick.T === "t") this.trades.add(now, 1 + (tick.cf ?? 0));
    if (!instrument) return;
    if (isLive) instrument.rate.add(now, 1 + (tick.cf ?? 0));
    if (tick.T === "t") instrument.addTrade(tick, now);
    else if (tick.T === "q") instrument.addQuote(tick, now);
  }

  /** Process a notice of ticks that will not arrive. */
  addGap({ ch, S }) {
    const instrument = this.instruments.get(S);
    if (instrument && ch === "trades") instrument.incomplete = true;
  }

  /**
   * A replay has moved to another time: streams start over, as if this page were opened now.
   *
   * @param {(channel: string, symbol: string) => boolean} isOutdated returns whether its data is from an earlier pass
   */
  restart(isOutdated, now) {
    for (const [symbol, instrument] of this.instruments) {
      for (const channel of ["trades", "quotes"]) {
        if (isOutdated(channel, symbol)) instrument.restart(channel, now);
      }
    }
  }

  /** The symbol's entry, created if necessary; undefined if there are too many. */
  instrument(symbol) {
    let instrument = this.instruments.get(symbol);
    if (!instrument && this.instruments.size < SYMBOLS_MAX) {
      instrument = new Instrument(symbol);
      this.instruments.set(symbol, instrument);
    }
    this.overfull ||= !instrument;
    return instrument;
  }

  forget(symbol) {
    this.instruments.delete(symbol);
  }

  /** Advance a symbol's trend to the present. */
  advance(instrument, now) {
    instrument.trend.advance(now, this.#live);
  }
}
