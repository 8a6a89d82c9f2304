/**
 * The selected symbol: every trade of it, from far enough back to draw candles, on a separate
 * connection. The watchlist's connection already subscribes to the symbol, and an existing subscription
 * can't start in the past.
 */

import { Candles } from "./candles.js";
import { connect } from "./feed.js";
import { Passes } from "./passes.js";

/** How far back to request trades, in minutes, by the seconds of a candle. */
const BACK_MINUTES = { 1: 20, 5: 100, 60: 12 * 60, 300: 24 * 60 };
const QUOTES_BACK_MINUTES = 10;
const RECENT_MAX = 64;
const CHANNELS = ["trades", "quotes"];

export class Chosen {
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
  #held = "";
  #turn = 0;
  #accepting = false;
  #onRefused;
  #onRestart;
  #onTick;
  #headers;
  #passes = new Passes();

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
      onTick: (tick) => this.#isWanted(tick) && this.#take(tick),
      onGap: (gap) => this.#isWanted(gap) && this.#miss(gap),
      onNotice: (notice) => {
        if (notice.T === "replay" && notice.id === undefined) this.#takeReplay(notice);
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
    this.#forget();
    const turn = ++this.#turn;
    const latest = await this.#latestMs(symbol);
    // The user may have selected another symbol meanwhile.
    if (turn === this.#turn) await this.#hold(symbol, latest, turn);
  }

  #forget() {
    this.candles.clear();
    this.recent = [];
    this.traded = 0;
    this.lost = 0;
    this.#onRestart();
  }

  /** The data of a channel belongs to an earlier pass of the replay. */
  #beginAnew(channel) {
    this.candles.forget(channel);
    if (channel === "trades") {
      this.recent = [];
      this.traded = 0;
      this.lost = 0;
    }
    this.#onRestart();
  }

  #takeReplay(state) {
    const isPast = this.#passes.takeState(state);
    for (const channel of CHANNELS) if (isPast(channel, this.symbol)) this.#beginAnew(channel);
  }

  /** All data belongs to another time of the replay. */
  beginAnew() {
    for (const channel of CHANNELS) this.#beginAnew(channel);
  }

  /** The state of the feed's replay; undefined if the feed is not a replay. */
  get replay() {
    return this.#passes.state;
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
    return this.#passes.positionMs ?? Date.now();
  }

  async #hold(symbol, latestMs, turn) {
    const before = this.#held;
    this.#held = symbol;
    const startOf = (minutes) => new Date(latestMs - minutes * 60_000).toISOString();
    const quotes = { start: startOf(QUOTES_BACK_MINUTES), conflate_ms: this.#conflateMs };
    const left = before && this.#ask("unsubscribe", { trades: [before], quotes: [before] });
    this.#ask("subscribe", { trades: [symbol] }, { start: startOf(this.#backMinutes) });
    this.#ask("subscribe", { quotes: [symbol] }, quotes);
    // Until then, live trades may arrive that the past will repeat.
    await left;
    if (turn === this.#turn) this.#accepting = true;
  }

  #ask(action, ...args) {
    return this.stream[action](...args).catch(this.#onRefused);
  }

  #isWanted({ S }) {
    return this.#accepting && S === this.symbol;
  }

  #take(tick) {
    this.#onTick(tick);
    const ms = Date.parse(tick.t);
    if (tick.T === "q") {
      if (tick.bp > 0 && tick.ap > 0) this.candles.quote(ms, (tick.bp + tick.ap) / 2);
      return;
    }
    // After a resume that did not match, the latest trade arrives as a snapshot, but it is still new.
    this.candles.trade(ms, tick.p, tick.s);
    this.traded += 1;
    this.recent.push(tick);
    if (this.recent.length > 2 * RECENT_MAX) this.recent.splice(0, RECENT_MAX);
  }

  #miss(gap) {
    const { ch, from, to, reason } = gap;
    if (this.#passes.takeGap(gap)) {
      this.#beginAnew(ch);
      return;
    }
    // Trades older than all that is kept were never promised.
    if (ch !== "trades" || (from === null && reason === "retention")) return;
    this.lost = from === null || this.lost === null ? null : this.lost + to - from + 1;
  }
}
