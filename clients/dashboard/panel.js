/** The panel with the figures of the connection, and the line above the chart with those of the selected symbol. */

import { byId, write } from "./dom.js";
import * as format from "./format.js";
import { Rate, isHistory } from "./market.js";
import { sum } from "./status.js";

const EVERY_MS = 500;
const PING_EVERY_MS = 5_000;
const MICROSECONDS = 1000;

export const STATE_NAMES = {
  connecting: "Connecting",
  connected: "Connected",
  stale: "Stale",
  reconnecting: "Reconnecting",
  closed: "Disconnected",
};
/** Milliseconds since 1970, by a monotonic clock. */
const nowMs = () => performance.timeOrigin + performance.now();

export class Panel {
  #clock = new Clock();
  #delays = new Delays();
  #bytes = new Rate();
  #ticks = new Rate();
  #received = 0;
  #drawnAt = -Infinity;
  #pingedAt = -Infinity;

  /** Record the stamps of a live tick. Delays need a comparison of the server's clock with ours. */
  addDelay(tick, now) {
    if (tick.tr === undefined || tick.snap || !this.#clock.isSettled) return;
    this.#delays.add(nowMs() + this.#clock.ahead - tick.tr / MICROSECONDS, now);
  }

  /** Count a tick in this second, unless it is from the past. */
  countTick(tick, now) {
    if (!isHistory(tick)) this.#ticks.add(now);
  }

  /**
   * @param {import("./feed.js").Stream} list
   * @param {import("./feed.js").Stream} chart
   * @param {import("./status.js").PageState} state
   */
  draw(list, chart, state, now) {
    if (now - this.#drawnAt < EVERY_MS) return;
    this.#drawnAt = now;
    const pingEveryMs = this.#clock.isSettled ? PING_EVERY_MS : 0;
    if (state.isListLive && now - this.#pingedAt > pingEveryMs) {
      this.#pingedAt = now;
      this.#ping(list);
    }
    const received = list.received.bytes + chart.received.bytes;
    this.#bytes.add(now, received - this.#received);
    this.#received = received;
    const totals = sum(list.totals(), chart.totals());
    write("ticks", format.rate(this.#ticks.read(now)));
    write("bytes", format.bytes(this.#bytes.read(now)));
    write("merged", format.count(totals.merged));
    write("skipped", format.count(totals.skipped));
    write("gaps", format.count(totals.gapped));
    write("reconnects", format.count(list.reconnects));
    write("account", totals.balanced ? "each accounted for" : `${format.count(totals.missing)} unexplained`);
    // Green only if everything is live: the accounts do not include ticks on the way.
    const isGood = totals.balanced ? (state.name === "connected" ? "true" : "") : "false";
    if (byId("account").dataset.good !== isGood) byId("account").dataset.good = isGood;
    this.#drawDelays(now, state.name === "connected");
  }

  #drawDelays(now, isLive) {
    const delays = this.#delays.percentiles([0.5, 0.99], now);
    write("p50", delays ? format.delay(delays[0]) : "–");
    write("p99", delays ? format.delay(delays[1]) : "–");
    // Next to any word other than "Connected", it would suggest that all is well.
    write("chip-delay", delays && isLive ? format.delay(delays[0]) : "");
  }

  async #ping(stream) {
    const sentAt = nowMs();
    try {
      const { t } = await stream.ping();
      this.#clock.addPing(sentAt, nowMs(), Date.parse(t));
    } catch {
      // The connection has ended, which another part of the page reports.
    }
  }
}

// -- delays

const DELAY_SECONDS = 60;
const BUCKETS = 160;
const DELAY_MIN_MS = 0.05;
/** Each bucket is wider than the previous one by this factor: percentiles are accurate to 5 %. */
const STEP = Math.log(1.1);

/** Delays over the last minute: a histogram for each second. */
export class Delays {
  #counts = new Uint32Array(DELAY_SECONDS * BUCKETS);
  #second = 0;

  add(ms, now) {
    this.#advance(now);
    const bucket = Math.ceil(Math.log(Math.max(ms, DELAY_MIN_MS) / DELAY_MIN_MS) / STEP);
    this.#counts[(this.#second % DELAY_SECONDS) * BUCKETS + Math.min(bucket, BUCKETS - 1)] += 1;
  }

  /**
   * @param {number[]} ratios such as 0.5 and 0.99, ascending
   * @returns {number[]|undefined} the delay that each share of ticks does not exceed, in milliseconds
   */
  percentiles(ratios, now) {
    this.#advance(now);
    const sums = new Float64Array(BUCKETS);
    this.#counts.forEach((count, at) => (sums[at % BUCKETS] += count));
    const total = sums.reduce((sum, count) => sum + count, 0);
    if (!total) return undefined;
    return ratios.map((ratio) => {
      let [bucket, below] = [0, sums[0]];
      while (below < ratio * total) below += sums[++bucket];
      return DELAY_MIN_MS * Math.exp(bucket * STEP);
    });
  }

  #advance(now) {
    const second = Math.floor(now / 1000);
    const from = Math.max(this.#second + 1, second - DELAY_SECONDS + 1);
    for (let at = from; at <= second; at++) {
      const start = (at % DELAY_SECONDS) * BUCKETS;
      this.#counts.fill(0, start, start + BUCKETS);
    }
    this.#second = second;
  }
}

const CLOCK_SAMPLES_MIN = 4;

/** How far the server's clock is ahead of ours, measured by pings: the fastest recent ping counts. */
export class Clock {
  #samples = [];

  /**
   * @param {number} sentAt our clock when the ping was sent, milliseconds since 1970
   * @param {number} receivedAt our clock when the answer arrived
   * @param {number} theirs the server's clock in the answer
   */
  addPing(sentAt, receivedAt, theirs) {
    const ahead = theirs - (sentAt + receivedAt) / 2;
    this.#samples = [...this.#samples.slice(-7), { ahead, took: receivedAt - sentAt }];
  }

  /** Whether there were enough pings: while the page is being built, answers wait to be read. */
  get isSettled() {
    return this.#samples.length >= CLOCK_SAMPLES_MIN;
  }

  /** Milliseconds; undefined until it is known. */
  get ahead() {
    const [first, ...rest] = this.#samples;
    return first && rest.reduce((best, each) => (each.took < best.took ? each : best), first).ahead;
  }
}

// -- the selected symbol

const MOVES = { "+": "up", "−": "down" };

/**
 * @param {import("./connections.js").ChartConnection} connection
 * @param {object|undefined} instrument the market's data of the symbol
 * @param {number} now
 */
export function showQuote({ symbol, lost }, instrument, now) {
  instrument?.forgetOutdated(now);
  const { last, bid, ask, change, decimals = 2 } = instrument ?? {};
  const text = format.change(change);
  write("quote-symbol", symbol || "–");
  write("quote-last", format.price(last, decimals));
  write("quote-change", text);
  write("quote-bid", format.price(bid, decimals));
  write("quote-ask", format.price(ask, decimals));
  write("lost", describeLost(lost));
  byId("quote-change").dataset.move = MOVES[text[0]] ?? "";
}

/** The title of the tab, which changes less often. */
export function showTitle(symbol, { last, decimals } = {}, isLive) {
  const old = isLive ? "" : " (not live)";
  const title = last === undefined ? "Tickcast" : `${symbol} ${format.price(last, decimals)}${old} – Tickcast`;
  if (document.title !== title) document.title = title;
}

function describeLost(lost) {
  if (lost === null) return "Trades before a restart may be missing";
  return lost ? `${format.count(lost)} trades are missing` : "";
}
