/** What this page knows of the market. Everything in here is bounded, and nothing draws. */

import { decimalsOf } from "./format.js";

export const TREND_POINTS = 120;
const TREND_STEP_MS = 500;
const SYMBOLS_MAX = 5_000;
const RECENT_MAX = 500;
const RATE_SECONDS = 5;
/** Trades that arrive within so long of one another are put in the order of their times. */
const TOGETHER_MS = 250;

/** Events a second over the last few whole seconds. Kept by the clock, so it needs no timer. */
export class Rate {
  #counts = new Float64Array(RATE_SECONDS + 1);
  #second = 0;
  #since = -1;

  add(now) {
    this.#advance(now);
    if (this.#since < 0) this.#since = now;
    this.#counts[this.#second % this.#counts.length] += 1;
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

/** One price each half second for a minute; where nothing was known there is a hole (NaN). */
class Trend {
  #points = new Float64Array(TREND_POINTS).fill(NaN);
  #slot = 0;
  #price = NaN;

  set(price, now) {
    this.advance(now, true);
    this.#price = price;
    this.#points[this.#slot % TREND_POINTS] = price;
  }

  /** @param {boolean} known whether the price since the last call is known to have stayed */
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

/** One symbol: its latest trade and quote, and what happened since the page was opened. */
class Instrument {
  last = undefined;
  bid = undefined;
  ask = undefined;
  volume = 0;
  missed = 0;
  decimals = 2;
  seenAt = 0;
  rate = new Rate();
  trend = new Trend();
  seqs = { t: 0, q: 0 };
  #firstTrade = undefined;
  #firstMid = undefined;

  constructor(symbol) {
    this.symbol = symbol;
  }

  /** Relative change since the page was opened: of trades, or of the middle where nobody trades. */
  get change() {
    const [first, now] =
      this.last === undefined ? [this.#firstMid, this.#mid] : [this.#firstTrade, this.last];
    return first > 0 ? now / first - 1 : undefined;
  }

  get spread() {
    return this.#mid === undefined ? undefined : this.ask - this.bid;
  }

  /** The spread as a part of the price. */
  get relativeSpread() {
    return this.#mid === undefined ? undefined : (this.ask - this.bid) / this.#mid;
  }

  get #mid() {
    return this.bid > 0 && this.ask > 0 ? (this.bid + this.ask) / 2 : undefined;
  }

  trade(tick, now) {
    this.last = tick.p;
    this.#firstTrade ??= tick.p;
    this.#fitDecimals(tick.p);
    this.trend.set(tick.p, now);
  }

  quote(tick, now) {
    this.bid = tick.bp;
    this.ask = tick.ap;
    this.#fitDecimals(tick.bp);
    this.#fitDecimals(tick.ap);
    this.#firstMid ??= this.#mid;
    if (this.last === undefined && this.#mid !== undefined) this.trend.set(this.#mid, now);
  }

  #fitDecimals(price) {
    const scaled = price * 10 ** this.decimals;
    if (Math.abs(scaled - Math.round(scaled)) < 1e-4) return;
    this.decimals = Math.max(this.decimals, decimalsOf(price));
  }
}

/** All symbols, and the latest trades. */
export class Market {
  /** @type {Map<string, Instrument>} */
  instruments = new Map();
  rate = new Rate();
  /** Trades that never came here, as their numbering shows. */
  missed = 0;
  /** Whether there are more symbols than are kept. */
  overfull = false;
  #live = false;
  #epoch = undefined;
  #recent = [];
  #traded = 0;

  /** Counts every trade that entered the tape. */
  get traded() {
    return this.#traded;
  }

  /** Say whether ticks arrive; without them no price is known to have stayed. */
  setLive(live, now) {
    if (live === this.#live) return;
    for (const instrument of this.instruments.values()) instrument.trend.advance(now, this.#live);
    this.#live = live;
  }

  /** Take a notice of the server: a new epoch counts from 1 again. */
  notice(message) {
    if (message.T === "subscription" && message.epoch !== this.#epoch) {
      this.#epoch = message.epoch;
      for (const instrument of this.instruments.values()) instrument.seqs = { t: 0, q: 0 };
    } else if (message.T === "gap" && message.reason === "epoch") {
      const instrument = this.instruments.get(message.S);
      if (instrument) instrument.seqs[message.ch === "trades" ? "t" : "q"] = 0;
    }
  }

  /** Take a trade or a quote as it came off the wire. */
  take(tick, now) {
    const instrument = this.#instrument(tick.S);
    if (!tick.snap) this.rate.add(now);
    if (!instrument) return;
    const before = instrument.seqs[tick.T];
    if (tick.snap && tick.seq <= before) return; // we had it when the connection was cut
    instrument.seqs[tick.T] = tick.seq;
    if (tick.T === "t") this.#trade(instrument, tick, before, now);
    else instrument.quote(tick, now);
    if (tick.snap) {
      const ago = Math.max(0, Date.now() - Date.parse(`${tick.t.slice(0, 19)}Z`));
      instrument.seenAt = Math.max(instrument.seenAt, now - ago);
    } else {
      instrument.seenAt = now;
      instrument.rate.add(now);
    }
  }

  /** Bring the trends up to now. */
  advance(instrument, now) {
    instrument.trend.advance(now, this.#live);
  }

  /** The latest trades that pass, newest first. */
  latestTrades(most, passes) {
    const found = [];
    const oldest = Math.max(0, this.#traded - RECENT_MAX);
    for (let at = this.#traded - 1; at >= oldest && found.length < most; at--) {
      const trade = this.#recent[at % RECENT_MAX];
      if (passes(trade.symbol)) found.push(trade);
    }
    return found;
  }

  #instrument(symbol) {
    let instrument = this.instruments.get(symbol);
    if (!instrument && this.instruments.size < SYMBOLS_MAX) {
      instrument = new Instrument(symbol);
      this.instruments.set(symbol, instrument);
    }
    this.overfull ||= !instrument;
    return instrument;
  }

  #trade(instrument, tick, before, now) {
    instrument.trade(tick, now);
    // The latest trade of a first snapshot is from before the page was opened.
    if (tick.snap && !before) return;
    const missed = before && tick.seq > before ? tick.seq - before - 1 : 0;
    this.missed += missed;
    instrument.missed += missed;
    instrument.volume += tick.s;
    const { S: symbol, p: price, s: size, tks: side, t: time } = tick;
    this.#remember({ symbol, price, size, side, time, instrument, arrivedAt: now });
  }

  /** One frame holds the ticks of each stream in order, not those of all streams. */
  #remember(trade) {
    const time = trade.time.slice(0, -1);
    let at = this.#traded++;
    const oldest = Math.max(0, at - RECENT_MAX + 1);
    for (; at > oldest; at--) {
      const before = this.#recent[(at - 1) % RECENT_MAX];
      const together = trade.arrivedAt - before.arrivedAt < TOGETHER_MS;
      if (!together || before.time.slice(0, -1) <= time) break;
      this.#recent[at % RECENT_MAX] = before;
    }
    this.#recent[at % RECENT_MAX] = trade;
  }
}
