/** The watchlist's connection: which streams it holds, and how often they may tell. */

import { connect } from "./feed.js";

/** After a longer cut the latest tick is wanted, not every one of each symbol. */
const TRADES_RESUME_MS = 30_000;
const QUOTES_RESUME_MS = 2_000;
/** Above so many trades a second they are conflated as well, until the page is opened anew. */
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
   * @param {{encoding: "json"|"msgpack", conflateMs: number, token: string}} options `conflateMs`: how
   *   often a quote of each symbol is of use
   */
  constructor(url, handlers, { encoding, conflateMs, token }) {
    this.#conflateMs = conflateMs;
    this.onRefused = handlers.onRefused;
    // What a server does not know of these it refuses by themselves.
    const configure = [{ stamps: true, heartbeat_ms: 1000 }, { replay: true }];
    this.stream = connect(url, handlers, { encoding, configure, token });
  }

  /**
   * Hold just these symbols.
   *
   * @param {string[]|null} symbols null: all there are, and those that are yet to appear
   */
  show(symbols) {
    const before = this.#symbols;
    const wanted = symbols ?? ["*"];
    this.#symbols = wanted;
    const added = wanted.filter((each) => !before?.includes(each));
    const removed = before?.filter((each) => !wanted.includes(each)) ?? [];
    // First what is new: a symbol that a wildcard covered until now is not to begin anew.
    if (added.length) this.#subscribe(added);
    if (removed.length) {
      this.stream.unsubscribe({ trades: removed, quotes: removed }).catch(this.onRefused);
    }
  }

  /** Ask for fewer trades where there are too many, once for all. */
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
