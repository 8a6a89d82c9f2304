/** When a disconnected client reconnects. The counterpart of `tickcast/client/backoff.py`, in milliseconds. */

const FIRST_MS = 200;
const MAX_MS = 10_000;
/** After a connection that lasted this long, delays start over. */
const SETTLED_MS = 1000;
const RESTART = 1012;
const RATE_LIMITED = 429;
const REFUSED_FIRST_MS = 400;
const REFUSED_MAX_MS = 3_000;
/** Close codes that would recur if the client sent the same messages again. */
const OUR_FAULTS = new Set([1002, 1007, 1009]);

/** Delays that grow while a server does not answer, randomized so that clients do not reconnect at once. */
export class Backoff {
  #dice;
  #bound = FIRST_MS;

  /** @param {() => number} [dice] returns numbers from 0 to 1; a delay lies anywhere below its bound */
  constructor(dice = Math.random) {
    this.#dice = dice;
  }

  /**
   * Milliseconds to wait after a close code (0 or 1006: connection lost); null means do not reconnect.
   *
   * @param {number} code
   * @param {number} lastedMs how long all subscriptions were active; 0 if they were not yet
   * @param {number} [retryMs] the delay that the server's `shutdown` asked for
   */
  afterClose(code, lastedMs, retryMs = 0) {
    if ((code >= 4000 && code < 4100) || (OUR_FAULTS.has(code) && !lastedMs)) return null;
    if (lastedMs >= SETTLED_MS) this.#bound = FIRST_MS;
    // Even if a server always says "at once", do not reconnect without a pause.
    const isFirst = this.#bound === FIRST_MS;
    const delay = this.afterFailure();
    if (code === RESTART && retryMs) return retryMs;
    const atOnce = code === RESTART || (code >= 4200 && code < 4300);
    return atOnce && isFirst ? 0 : delay;
  }

  /** Milliseconds to wait after a failed attempt; a browser does not give the reason. */
  afterFailure() {
    const delay = this.#bound * this.#dice();
    this.#bound = Math.min(2 * this.#bound, MAX_MS);
    return delay;
  }
}

/**
 * When to repeat, on the same connection, a message that a server refused for coming too soon. A new
 * connection would start with the first message again, and get no further than this one.
 */
export class Pace {
  #dice;
  #bound = REFUSED_FIRST_MS;

  /**
   * @param {() => number} [dice] returns numbers from 0 to 1; a delay lies in the upper half below its
   *   bound, because servers close connections that are refused again and again
   */
  constructor(dice = Math.random) {
    this.#dice = dice;
  }

  /** The server has accepted the message: the next refusal counts as the first. */
  granted() {
    this.#bound = REFUSED_FIRST_MS;
  }

  /** Milliseconds to wait after an error with this code; null if waiting does not help. */
  afterRefusal(code) {
    if (code !== RATE_LIMITED) return null;
    const delay = (this.#bound * (1 + this.#dice())) / 2;
    this.#bound = Math.min(2 * this.#bound, REFUSED_MAX_MS);
    return delay;
  }
}
