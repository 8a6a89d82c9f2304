/** Whether a connection lives, by when something was heard of the other side; without I/O. */

export const CHECK_EVERY_MS = 500;
const DIAL_MS = 5_000;
/** After so long without a word we ask for one, and after as long again the connection is dead. */
const SILENCE_MS = 5_000;

/** Times are milliseconds of a clock that does not jump. */
export class Pulse {
  heardAt = 0;
  #askedAt = 0;
  #checkedAt = 0;

  /** Another connection is being opened. */
  begin(now) {
    this.hear(now);
    this.#checkedAt = now;
  }

  /** The other side has said something. */
  hear(now) {
    this.heardAt = now;
    this.#askedAt = 0;
  }

  /**
   * To be called every `CHECK_EVERY_MS`.
   *
   * @param {boolean} isOpen whether the connection is, or else is yet to be
   * @returns {"alive"|"ask"|"dead"} `ask`: the other side is to be asked for a word, now
   */
  check(now, isOpen) {
    const slept = now - this.#checkedAt > 4 * CHECK_EVERY_MS;
    this.#checkedAt = now;
    // What has come meanwhile is yet to be read, and a dead connection yet to be found out.
    if (slept) this.hear(now);
    if (!isOpen) return now - this.heardAt > DIAL_MS ? "dead" : "alive";
    if (this.#askedAt) return now - this.#askedAt > SILENCE_MS ? "dead" : "alive";
    if (!slept && now - this.heardAt <= SILENCE_MS) return "alive";
    this.#askedAt = now;
    return "ask";
  }
}
