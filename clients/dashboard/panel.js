/** The panel that shows the state of the connection and how the figures are counted. */

import * as format from "./format.js";
import { isHistory } from "./market.js";
import { sum } from "./notices.js";
import { Clock, Delays, Rate } from "./rates.js";

const EVERY_MS = 500;
const PING_EVERY_MS = 5_000;
const MICROSECONDS = 1000;

export const WORDS = {
  connecting: "Connecting",
  connected: "Connected",
  stale: "Stale",
  reconnecting: "Reconnecting",
  closed: "Disconnected",
};
const part = (id) => document.getElementById(id);
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

  /** Record the stamps of a live tick. Delays need a clock that was compared with ours. */
  time(tick, now) {
    if (tick.tr === undefined || tick.snap || !this.#clock.isSettled) return;
    this.#delays.add(nowMs() + this.#clock.ahead - tick.tr / MICROSECONDS, now);
  }

  /** Count a tick in this second, unless it is from the past. */
  count(tick, now) {
    if (!isHistory(tick)) this.#ticks.add(now);
  }

  /**
   * @param {import("./feed.js").Stream} watch
   * @param {import("./feed.js").Stream} chosen
   * @param {import("./notices.js").PageState} state
   */
  draw(watch, chosen, state, now) {
    if (now - this.#drawnAt < EVERY_MS) return;
    this.#drawnAt = now;
    const pingEveryMs = this.#clock.isSettled ? PING_EVERY_MS : 0;
    if (state.isListLive && now - this.#pingedAt > pingEveryMs) {
      this.#pingedAt = now;
      this.#ping(watch);
    }
    const received = watch.received.bytes + chosen.received.bytes;
    this.#bytes.add(now, received - this.#received);
    this.#received = received;
    const totals = sum(watch.totals(), chosen.totals());
    write("ticks", format.rate(this.#ticks.read(now)));
    write("bytes", format.bytes(this.#bytes.read(now)));
    write("merged", format.count(totals.merged));
    write("skipped", format.count(totals.skipped));
    write("gaps", format.count(totals.gapped));
    write("reconnects", format.count(watch.reconnects));
    write("account", totals.balanced ? "each accounted for" : `${format.count(totals.missing)} unexplained`);
    // Green only if everything is live: the accounts do not include ticks on the way.
    const isGood = totals.balanced ? (state.name === "connected" ? "true" : "") : "false";
    if (part("account").dataset.good !== isGood) part("account").dataset.good = isGood;
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
    const askedAt = nowMs();
    try {
      const { t } = await stream.ping();
      this.#clock.learn(askedAt, nowMs(), Date.parse(t));
    } catch {
      // The connection has ended, which another part of the page reports.
    }
  }
}

/** Write a text into an element, unless it is already there. */
export function write(id, text) {
  const element = part(id);
  if (element.textContent !== text) element.textContent = text;
}
