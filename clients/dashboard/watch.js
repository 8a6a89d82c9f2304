/** The watchlist's connection: its subscriptions, and how often they may send ticks. */

import { connect } from "./feed.js";

/** After a longer interruption, request the latest tick of each symbol instead of every one. */
const TRADES_RESUME_MS = 30_000;
const QUOTES_RESUME_MS = 2_000;
/** Above this many trades a second, trades are conflated as well, until the page is reloaded. */
const TRADES_MAX = 5_000;
const TRADES_EASED_MS = 250;

export class Watch {
  /** Whether trades are conflated, so that volumes are too low. */
  eased = false;
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
    const wanted = symbols ?? ["*"];
    this.#symbols = wanted;
    const added = wanted.filter((each) => !before?.includes(each));
    const removed = before?.filter((each) => !wanted.includes(each)) ?? [];
    // Add first: a symbol that a wildcard covered until now must not start over.
    if (added.length) this.#subscribe(added);
    if (removed.length) {
      this.stream.unsubscribe({ trades: removed, quotes: removed }).catch(this.onRefused);
    }
  }

  /** Request fewer trades if there are too many, permanently. */
  ease(tradesPerSecond) {
    if (this.eased || tradesPerSecond < TRADES_MAX) return;
    this.eased = true;
    this.stream
      .subscribe({ trades: this.#symbols }, { conflate_ms: TRADES_EASED_MS, slow: "conflate" })
      .catch(this.onRefused);
  }

  #subscribe(symbols) {
    const trades = this.eased ? { conflate_ms: TRADES_EASED_MS, slow: "conflate" } : {};
    const quotes = { conflate_ms: this.#conflateMs, resume_ms: QUOTES_RESUME_MS };
    const asked = [
      this.stream.subscribe({ trades: symbols }, { snapshot: true, resume_ms: TRADES_RESUME_MS, ...trades }),
      this.stream.subscribe({ quotes: symbols }, { snapshot: true, ...quotes }),
    ];
    asked.forEach((each) => each.catch(this.onRefused));
  }
}
