/**
 * The chosen symbol: every trade of it, from far enough back to draw candles of, on a connection of
 * its own. On that of the watchlist it is held already, and what is held can't begin in the past.
 */

import { Candles } from "./candles.js";
import { connect } from "./feed.js";
import { Passes } from "./passes.js";

/** How far back trades are asked for, by the seconds of a candle: minutes. */
const BACK_MINUTES = { 1: 20, 5: 100, 60: 12 * 60, 300: 24 * 60 };
const QUOTES_BACK_MINUTES = 10;
const RECENT_MAX = 64;
const CHANNELS = ["trades", "quotes"];

export class Chosen {
  symbol = "";
  candles = new Candles();
  stream;
  /** The latest trades, oldest first, and how many there ever were of this symbol. */
  recent = [];
  traded = 0;
  /** Trades that are not in the candles and can't be had; null where nobody knows how many. */
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
   * @param {(symbol: string) => string} snapshotUrl where the latest ticks of a symbol are told
   * @param {{onState: (state: object) => void, onRefused: (error: Error) => void,
   *   onRestart: () => void, onTick: (tick: object) => void, onNotice: (notice: object) => void}} handlers
   *   `onRestart`: the chart is empty again
   * @param {{encoding: "json"|"msgpack", conflateMs: number, token: string, headers: object}} options
   *   `conflateMs`: how often a quote is of use; `headers`: of requests over HTTP
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
   * @param {number} step seconds of a candle
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
    // Somebody may have chosen another one meanwhile.
    if (turn === this.#turn) await this.#hold(symbol, latest, turn);
  }

  #forget() {
    this.candles.clear();
    this.recent = [];
    this.traded = 0;
    this.lost = 0;
    this.#onRestart();
  }

  /** What came of a channel is of an earlier pass of the replay. */
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

  /** What is known is of another time of the replay. */
  beginAnew() {
    for (const channel of CHANNELS) this.#beginAnew(channel);
  }

  /** Where the replay of the feed stands; undefined where the feed is none. */
  get replay() {
    return this.#passes.state;
  }

  /** Of its latest trade, where there is one: what is replayed has another present. */
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
    // Until then live trades may come that the past will bring once more.
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
    // After a resume that did not fit, the latest trade comes as a snapshot: it is new all the same.
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
    // What is older than all that is kept was never promised.
    if (ch !== "trades" || (from === null && reason === "retention")) return;
    this.lost = from === null || this.lost === null ? null : this.lost + to - from + 1;
  }
}
