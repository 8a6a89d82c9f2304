/** The panel that tells how the connection is doing, and how that was counted. */

import * as format from "./format.js";
import { sum } from "./notices.js";
import { Clock, Delays, Rate } from "./rates.js";

const EVERY_MS = 500;
const PING_EVERY_MS = 5_000;
const MICROSECONDS = 1000;

export const WORDS = {
  connecting: "Connecting",
  connected: "Connected",
  reconnecting: "Reconnecting",
  closed: "Disconnected",
};
const part = (id) => document.getElementById(id);
/** Milliseconds since 1970, by a clock that does not jump. */
const nowMs = () => performance.timeOrigin + performance.now();

export class Panel {
  #clock = new Clock();
  #delays = new Delays();
  #bytes = new Rate();
  #ticks = new Rate();
  #received = { bytes: 0, ticks: 0 };
  #drawnAt = -Infinity;
  #pingedAt = -Infinity;

  /** Take the stamps of a live tick. Only those whose clock was compared with ours can be timed. */
  time(tick, now) {
    if (tick.tr === undefined || tick.snap || !this.#clock.isSettled) return;
    this.#delays.add(nowMs() + this.#clock.ahead - tick.tr / MICROSECONDS, now);
  }

  /**
   * @param {import("./feed.js").Stream} watch
   * @param {import("./feed.js").Stream} chosen
   * @param {import("./feed.js").State} state
   */
  draw(watch, chosen, state, now) {
    if (now - this.#drawnAt < EVERY_MS) return;
    this.#drawnAt = now;
    const pingEveryMs = this.#clock.isSettled ? PING_EVERY_MS : 0;
    if (state.name === "connected" && now - this.#pingedAt > pingEveryMs) {
      this.#pingedAt = now;
      this.#ping(watch);
    }
    this.#count(sum(watch.received, chosen.received), now);
    const totals = sum(watch.totals(), chosen.totals());
    write("ticks", format.rate(this.#ticks.read(now)));
    write("bytes", format.bytes(this.#bytes.read(now)));
    write("merged", format.count(totals.merged));
    write("skipped", format.count(totals.skipped));
    write("gaps", format.count(totals.gapped));
    write("reconnects", format.count(watch.reconnects));
    write("account", totals.balanced ? "each accounted for" : `${format.count(totals.missing)} unexplained`);
    part("account").dataset.good = String(totals.balanced);
    this.#drawDelays(now);
  }

  #drawDelays(now) {
    const delays = this.#delays.percentiles([0.5, 0.99], now);
    write("p50", delays ? format.delay(delays[0]) : "–");
    write("p99", delays ? format.delay(delays[1]) : "–");
    write("chip-delay", delays ? format.delay(delays[0]) : "");
  }

  #count(received, now) {
    this.#bytes.add(now, received.bytes - this.#received.bytes);
    this.#ticks.add(now, received.ticks - this.#received.ticks);
    this.#received = received;
  }

  async #ping(stream) {
    const askedAt = nowMs();
    try {
      const { t } = await stream.ping();
      this.#clock.learn(askedAt, nowMs(), Date.parse(t));
    } catch {
      // The connection has ended, which is told elsewhere.
    }
  }
}

/** Write a text into an element, if it is not there already. */
export function write(id, text) {
  const element = part(id);
  if (element.textContent !== text) element.textContent = text;
}
