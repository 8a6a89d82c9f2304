/** Whether a connection is alive, judged by when the other side was last heard; without I/O. */

export const CHECK_EVERY_MS = 500;
const DIAL_MS = 5_000;
/** After this long in silence we send a ping, and after as long again the connection is dead. */
const SILENCE_MS = 5_000;

/** Times are milliseconds of a monotonic clock. */
export class Pulse {
  heardAt = 0;
  #askedAt = 0;
  #checkedAt = 0;

  /** Another connection is being opened. */
  begin(now) {
    this.hear(now);
    this.#checkedAt = now;
  }

  /** The other side has sent something. */
  hear(now) {
    this.heardAt = now;
    this.#askedAt = 0;
  }

  /**
   * Check the connection; call this every `CHECK_EVERY_MS`.
   *
   * @param {boolean} isOpen whether the connection is open; otherwise it is being opened
   * @returns {"alive"|"ask"|"dead"} `ask`: send a ping to the other side now
   */
  check(now, isOpen) {
    const slept = now - this.#checkedAt > 4 * CHECK_EVERY_MS;
    this.#checkedAt = now;
    // Messages that arrived meanwhile have yet to be read, and a dead connection has yet to be detected.
    if (slept) this.hear(now);
    if (!isOpen) return now - this.heardAt > DIAL_MS ? "dead" : "alive";
    if (this.#askedAt) return now - this.#askedAt > SILENCE_MS ? "dead" : "alive";
    if (!slept && now - this.heardAt <= SILENCE_MS) return "alive";
    this.#askedAt = now;
    return "ask";
  }
}
