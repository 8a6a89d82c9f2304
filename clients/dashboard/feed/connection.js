/**
 * Rules of a connection, without I/O: when to reconnect, when it is dead, and which requests are pending.
 * Times are milliseconds. The counterpart of `tickcast/client/backoff.py` and of `PendingRequests`.
 */

const FIRST_MS = 200;
const MAX_MS = 10_000;
/** Delays start over after a connection that has lasted at least this long. */
const STABLE_MS = 1000;
const REFUSED_FIRST_MS = 400;
const REFUSED_MAX_MS = 3_000;
const RESTART = 1012;
const RATE_LIMITED = 429;
/** Close codes that would recur if the client sent the same messages again. */
const CLIENT_ERRORS = new Set([1002, 1007, 1009]);

/** Reconnect delays that grow with each failure, with jitter to spread clients out. */
export class ReconnectDelays {
  #dice;
  #bound = FIRST_MS;

  /** @param {() => number} [dice] returns numbers from 0 to 1; a delay lies anywhere below its bound */
  constructor(dice = Math.random) {
    this.#dice = dice;
  }

  /**
   * Milliseconds to wait after a close code (0 or 1006: cut); null means do not reconnect.
   *
   * @param {number} code
   * @param {number} lastedMs how long all subscriptions were in place; 0 if they never were
   * @param {number} [retryMs] the delay that the server's `shutdown` message requested
   */
  afterClose(code, lastedMs, retryMs = 0) {
    if ((code >= 4000 && code < 4100) || (CLIENT_ERRORS.has(code) && !lastedMs)) return null;
    if (lastedMs >= STABLE_MS) this.#bound = FIRST_MS;
    // Reconnect at once only the first time: a server might close every connection this way.
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
 * Delays before repeating a rate-limited message on the same connection. Reconnecting would not help: a new
 * connection would start over with the first message and get no further than this one.
 */
export class RateLimitDelays {
  #dice;
  #bound = REFUSED_FIRST_MS;

  /**
   * @param {() => number} [dice] returns numbers from 0 to 1; a delay lies in the upper half below its bound,
   *   because servers close connections that are refused repeatedly
   */
  constructor(dice = Math.random) {
    this.#dice = dice;
  }

  /** Start over: the server has accepted a message. */
  reset() {
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

export const CHECK_EVERY_MS = 500;
const OPEN_TIMEOUT_MS = 5_000;
/** How long a server may be silent before it is pinged, and how long it may take to answer. */
const SILENCE_MS = 5_000;

/** Judges whether a connection is alive by when the server last sent something. */
export class LivenessCheck {
  receivedAt = 0;
  #pingedAt = 0;
  #checkedAt = 0;

  /** Begin with a connection that is being opened. */
  begin(now) {
    this.recordMessage(now);
    this.#checkedAt = now;
  }

  recordMessage(now) {
    this.receivedAt = now;
    this.#pingedAt = 0;
  }

  /**
   * Check the connection; call this every `CHECK_EVERY_MS`.
   *
   * @param {boolean} isOpen whether the connection is open; otherwise it is being opened
   * @returns {"alive"|"ping"|"dead"} `ping`: send a ping to the server now
   */
  check(now, isOpen) {
    const hasSlept = now - this.#checkedAt > 4 * CHECK_EVERY_MS;
    this.#checkedAt = now;
    // Messages that arrived during the sleep have yet to be read, and a dead connection to be detected.
    if (hasSlept) this.recordMessage(now);
    if (!isOpen) return now - this.receivedAt > OPEN_TIMEOUT_MS ? "dead" : "alive";
    if (this.#pingedAt) return now - this.#pingedAt > SILENCE_MS ? "dead" : "alive";
    if (!hasSlept && now - this.receivedAt <= SILENCE_MS) return "alive";
    this.#pingedAt = now;
    return "ping";
  }
}

/**
 * Requests that wait for replies. After a disconnection they are sent again.
 *
 * @typedef {object} Request
 * @property {() => {id: number, message: object}} build makes the message anew each time it is sent
 * @property {(reply: object) => void} resolve
 * @property {(error: Error) => void} reject
 */
export class PendingRequests {
  /** @type {Map<number, Request>} */
  #sent = new Map();
  /** @type {Request[]} */
  #unsent = [];

  /** @param {Request} request to be sent on the next connection */
  postpone(request) {
    this.#unsent.push(request);
  }

  /** Return all requests to send now, in order. */
  takeUnsent() {
    return this.#unsent.splice(0);
  }

  addSent(id, request) {
    this.#sent.set(id, request);
  }

  /** @returns {Request|undefined} the request with this id, which no longer waits */
  takeAnswered(id) {
    const request = this.#sent.get(id);
    this.#sent.delete(id);
    return request;
  }

  /** The connection was lost: send all pending requests again on the next one. */
  resetSent() {
    this.#unsent.unshift(...this.#sent.values());
    this.#sent.clear();
  }

  /** Reject all requests. */
  end(error) {
    this.resetSent();
    for (const { reject } of this.takeUnsent()) reject(error);
  }
}
