/** When a client that was cut off comes back. The twin of `clients/backoff.py`, in milliseconds. */

const FIRST_MS = 200;
const MAX_MS = 10_000;
/** After a connection that has lasted so long, delays begin anew. */
const SETTLED_MS = 1000;
const RESTART = 1012;
const RATE_LIMITED = 429;
const REFUSED_FIRST_MS = 400;
const REFUSED_MAX_MS = 3_000;
/** Close codes that would come again if the same was said again. */
const OUR_FAULTS = new Set([1002, 1007, 1009]);

/** Delays that grow while a server does not answer, spread so that clients do not come at once. */
export class Backoff {
  #dice;
  #bound = FIRST_MS;

  /** @param {() => number} [dice] numbers from 0 to 1; a delay lies anywhere below its bound */
  constructor(dice = Math.random) {
    this.#dice = dice;
  }

  /**
   * Milliseconds to wait after a close code (0 or 1006: cut); null: do not come back.
   *
   * @param {number} code
   * @param {number} lastedMs how long all subscriptions were held; 0 if they were not yet
   * @param {number} [retryMs] what the server's `shutdown` has asked for
   */
  afterClose(code, lastedMs, retryMs = 0) {
    if ((code >= 4000 && code < 4100) || (OUR_FAULTS.has(code) && !lastedMs)) return null;
    if (lastedMs >= SETTLED_MS) this.#bound = FIRST_MS;
    // Even a server that always says "at once" is not to be asked without pause.
    const isFirst = this.#bound === FIRST_MS;
    const delay = this.afterFailure();
    if (code === RESTART && retryMs) return retryMs;
    const atOnce = code === RESTART || (code >= 4200 && code < 4300);
    return atOnce && isFirst ? 0 : delay;
  }

  /** Milliseconds to wait after an attempt that has failed; a browser does not say why. */
  afterFailure() {
    const delay = this.#bound * this.#dice();
    this.#bound = Math.min(2 * this.#bound, MAX_MS);
    return delay;
  }
}

/**
 * When to repeat a message that a server has refused for coming too soon, on the same connection. A
 * new connection would begin with the first message again, and get no further than this one.
 */
export class Pace {
  #dice;
  #bound = REFUSED_FIRST_MS;

  /**
   * @param {() => number} [dice] numbers from 0 to 1; a delay lies in the upper half below its bound,
   *   because servers close connections that are refused again and again
   */
  constructor(dice = Math.random) {
    this.#dice = dice;
  }

  /** The server has done what it was asked for: the next refusal is a first one. */
  granted() {
    this.#bound = REFUSED_FIRST_MS;
  }

  /** Milliseconds to wait after an error with this code; null: waiting does not help. */
  afterRefusal(code) {
    if (code !== RATE_LIMITED) return null;
    const delay = (this.#bound * (1 + this.#dice())) / 2;
    this.#bound = Math.min(2 * this.#bound, REFUSED_MAX_MS);
    return delay;
  }
}
