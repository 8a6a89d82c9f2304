/** The page's two connections: one for the watchlist, one for the chart. */

import { Candles } from "./candles.js";
import { connect } from "./feed.js";
import { ReplayMoves } from "./replay.js";

/** After a longer interruption, request the latest tick of each symbol instead of every one. */
const TRADES_RESUME_MS = 30_000;
const QUOTES_RESUME_MS = 2_000;
/** Above this many trades a second, trades are conflated as well, until the page is reloaded. */
const TRADES_RATE_MAX = 5_000;
const TRADES_CONFLATE_MS = 250;

/** The subscriptions of the watchlist, and how often they may send ticks. */
export class ListConnection {
  /** Whether trades are conflated, so that volumes are too low. */
  conflated = false;
  stream;
  #conflateMs;
  #symbols = undefined;

  /**
   * @param {string} url
   * @param {import("./feed.js").Handlers & {onRefused: (error: Error) => void}} handlers
   * @param {{encoding: "json"|"msgpack", conflateMs: number, token: string}} options `conflateMs`: the
   *   shortest useful interval between quotes of each symbol
   */
  constructor(url, handlers, { encoding, conflateMs, token }) {
    this.#conflateMs = conflateMs;
    this.onRefused = handlers.onRefused;
    // One message each, so that a server can refuse those that it does not know separately.
    const configure = [{ stamps: true, heartbeat_ms: 1000 }, { replay: true }];
    this.stream = connect(url, handlers, { encoding, configure, token });
  }

  /**
   * Subscribe to exactly these symbols.
   *
   * @param {string[]|null} symbols null: all symbols, including those that appear later
   */
  show(symbols) {
    const before = this.#symbols;
    const next = symbols ?? ["*"];
    this.#symbols = next;
    const added = next.filter((each) => !before?.includes(each));
    const removed = before?.filter((each) => !next.includes(each)) ?? [];
    // Add first: a symbol that a wildcard covered until now must not start over.
    if (added.length) this.#subscribe(added);
    if (removed.length) {
      this.stream.unsubscribe({ trades: removed, quotes: removed }).catch(this.onRefused);
    }
  }

  /** Request fewer trades if there are too many, permanently. */
  conflateTrades(tradesPerSecond) {
    if (this.conflated || tradesPerSecond < TRADES_RATE_MAX) return;
    this.conflated = true;
    this.stream
      .subscribe({ trades: this.#symbols }, { conflate_ms: TRADES_CONFLATE_MS, slow: "conflate" })
      .catch(this.onRefused);
  }

  #subscribe(symbols) {
    const trades = this.conflated ? { conflate_ms: TRADES_CONFLATE_MS, slow: "conflate" } : {};
    const quotes = { conflate_ms: this.#conflateMs, resume_ms: QUOTES_RESUME_MS };
    const replies = [
      this.stream.subscribe({ trades: symbols }, { snapshot: true, resume_ms: TRADES_RESUME_MS, ...trades }),
      this.stream.subscribe({ quotes: symbols }, { snapshot: true, ...quotes }),
    ];
    replies.forEach((each) => each.catch(this.onRefused));
  }
}

/** How far back to request trades, in minutes, by the seconds of a candle. */
const BACK_MINUTES = { 1: 20, 5: 100, 60: 12 * 60, 300: 24 * 60 };
const QUOTES_BACK_MINUTES = 10;
const RECENT_MAX = 64;
const CHANNELS = ["trades", "quotes"];

/**
 * The selected symbol: every trade of it, from far enough back to draw candles. It has a separate connection,
 * because the watchlist's already subscribes to the symbol, and an existing subscription can't start in the past.
 */
export class ChartConnection {
  symbol = "";
  candles = new Candles();
  stream;
  /** The latest trades, oldest first, and the total number of trades of this symbol. */
  recent = [];
  traded = 0;
  /** Trades that are not in the candles and no longer available; null if their number is unknown. */
  lost = 0;
  #snapshotUrl;
  #conflateMs;
  #backMinutes = 0;
  #subscribed = "";
  #turn = 0;
  #accepting = false;
  #onRefused;
  #onRestart;
  #onTick;
  #headers;
  #moves = new ReplayMoves();

  /**
   * @param {string} url
   * @param {(symbol: string) => string} snapshotUrl the URL of a symbol's latest ticks
   * @param {{onState: (state: object) => void, onRefused: (error: Error) => void,
   *   onRestart: () => void, onTick: (tick: object) => void, onNotice: (notice: object) => void}} handlers
   * `onRestart`: the chart is empty again
   * @param {{encoding: "json"|"msgpack", conflateMs: number, token: string, headers: object}} options
   * `conflateMs`: the shortest useful interval between quotes; `headers`: for requests over HTTP
   */
  constructor(url, snapshotUrl, { onState, onRefused, onRestart, onTick, onNotice }, { encoding, conflateMs, token, headers }) {
    this.#snapshotUrl = snapshotUrl;
    this.#conflateMs = conflateMs;
    this.#onRefused = onRefused;
    this.#onRestart = onRestart;
    this.#headers = headers;
    this.#onTick = onTick;
    const handlers = {
      onTick: (tick) => this.#isSelected(tick) && this.#addTick(tick),
      onGap: (gap) => this.#isSelected(gap) && this.#addGap(gap),
      onNotice: (notice) => {
        if (notice.T === "replay" && notice.id === undefined) this.#processReplay(notice);
        onNotice(notice);
      },
      onState,
    };
    const options = { encoding, token, configure: [{ stamps: true, heartbeat_ms: 1000 }, { replay: true }] };
    this.stream = connect(url, handlers, options);
  }

  /**
   * @param {string} symbol
   * @param {number} step length of a candle in seconds
   */
  async show(symbol, step) {
    const backMinutes = BACK_MINUTES[step];
    if (symbol === this.symbol && backMinutes <= this.#backMinutes) return;
    this.#backMinutes = symbol === this.symbol ? backMinutes : Math.max(backMinutes, BACK_MINUTES[1]);
    this.symbol = symbol;
    this.#accepting = false;
    this.#clear();
    const turn = ++this.#turn;
    const latest = await this.#latestMs(symbol);
    // The user may have selected another symbol meanwhile.
    if (turn === this.#turn) await this.#subscribe(symbol, latest, turn);
  }

  #clear() {
    this.candles.clear();
    this.recent = [];
    this.traded = 0;
    this.lost = 0;
    this.#onRestart();
  }

  /** The data of a channel belongs to an earlier pass of the replay. */
  #restartChannel(channel) {
    this.candles.forget(channel);
    if (channel === "trades") {
      this.recent = [];
      this.traded = 0;
      this.lost = 0;
    }
    this.#onRestart();
  }

  #processReplay(state) {
    const isOutdated = this.#moves.setState(state);
    for (const channel of CHANNELS) if (isOutdated(channel, this.symbol)) this.#restartChannel(channel);
  }

  /** All data belongs to another time of the replay. */
  restart() {
    for (const channel of CHANNELS) this.#restartChannel(channel);
  }

  /** The state of the feed's replay; undefined if the feed is not a replay. */
  get replay() {
    return this.#moves.state;
  }

  /** The time of the latest trade, if there is one: a replay has a different present. */
  async #latestMs(symbol) {
    try {
      const reply = await fetch(this.#snapshotUrl(symbol), { headers: this.#headers });
      const times = (await reply.json()).filter(({ T }) => T === "t").map(({ t }) => Date.parse(t));
      return times.length ? Math.max(...times) : this.#presentMs;
    } catch {
      return this.#presentMs;
    }
  }

  get #presentMs() {
    return this.#moves.positionMs ?? Date.now();
  }

  async #subscribe(symbol, latestMs, turn) {
    const before = this.#subscribed;
    this.#subscribed = symbol;
    const startOf = (minutes) => new Date(latestMs - minutes * 60_000).toISOString();
    const quotes = { start: startOf(QUOTES_BACK_MINUTES), conflate_ms: this.#conflateMs };
    const unsubscribed = before && this.#request("unsubscribe", { trades: [before], quotes: [before] });
    this.#request("subscribe", { trades: [symbol] }, { start: startOf(this.#backMinutes) });
    this.#request("subscribe", { quotes: [symbol] }, quotes);
    // Until then, live trades may arrive that the past will repeat.
    await unsubscribed;
    if (turn === this.#turn) this.#accepting = true;
  }

  #request(action, ...args) {
    return this.stream[action](...args).catch(this.#onRefused);
  }

  #isSelected({ S }) {
    return this.#accepting && S === this.symbol;
  }

  #addTick(tick) {
    this.#onTick(tick);
    const ms = Date.parse(tick.t);
    if (tick.T === "q") {
      if (tick.bp > 0 && tick.ap > 0) this.candles.addQuote(ms, (tick.bp + tick.ap) / 2);
      return;
    }
    // After a resume that did not match, the latest trade arrives as a snapshot, but it is still new.
    this.candles.addTrade(ms, tick.p, tick.s);
    this.traded += 1;
    this.recent.push(tick);
    if (this.recent.length > 2 * RECENT_MAX) this.recent.splice(0, RECENT_MAX);
  }

  #addGap(gap) {
    const { ch, from, to, reason } = gap;
    if (this.#moves.addGap(gap)) {
      this.#restartChannel(ch);
      return;
    }
    // Trades older than all that is kept do not count.
    if (ch !== "trades" || (from === null && reason === "retention")) return;
    this.lost = from === null || this.lost === null ? null : this.lost + to - from + 1;
  }
}
