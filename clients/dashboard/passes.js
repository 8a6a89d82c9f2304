/**
 * Which streams of a replay have moved to another time. A replay that goes back sends its state, but in a
 * loop only within a second; and each stream reports a gap, but only with its next tick. Whichever arrives
 * first separates the passes: earlier data belongs to the previous pass, and later data to the current one.
 *
 * A paused replay that is moved forward sends no tick, so its new position reveals the move. A step also
 * changes the position, but sends ticks.
 *
 * One instance for each connection: its gaps and replay messages arrive in the order of the ticks.
 */

/** A tick of a step arrives within this time before or after the message about it. */
const STEP_MS = 500;

export class Passes {
  #state = undefined;
  /** Streams that have restarted since the last message of the replay. */
  #begun = new Set();
  #lastTime = "";
  /** When a paused replay moved forward, and from where; 0 if it did not. */
  #forwardAt = 0;
  #forwardFrom = "";

  /** The replay's latest message; undefined if there is none. */
  get state() {
    return this.#state;
  }

  /** The last known position of the replay, milliseconds since 1970; undefined if none is known. */
  get positionMs() {
    return this.#state && Date.parse(this.#state.position);
  }

  /** @param {{t: string}} tick any tick that has arrived */
  receive({ t }) {
    this.#lastTime = t;
    if (this.#forwardAt && isAfter(t, this.#forwardFrom)) this.#forwardAt = 0;
  }

  /**
   * @param {import("./feed/book.js").Gap} gap
   * @returns {boolean} whether its stream has gone back
   */
  takeGap({ ch, S, reason }) {
    if (reason !== "epoch" || !this.#state) return false;
    this.#begun.add(`${ch}/${S}`);
    return true;
  }

  /**
   * @param {import("./replay.js").State} state
   * @param {number} [now]
   * @returns {(channel: string, symbol: string) => boolean} whether the data of a stream belongs to
   *   an earlier pass
   */
  takeState(state, now = 0) {
    const before = this.#state;
    const isBack = before && isAfter(before.position, state.position);
    const begun = this.#begun;
    this.#state = state;
    this.#begun = new Set();
    if (isBack || state.state === "playing") {
      this.#forwardAt = 0;
    } else if (before?.state === "paused" && isAfter(state.position, before.position)) {
      if (!isAfter(this.#lastTime, before.position)) {
        this.#forwardAt ||= now;
        this.#forwardFrom = before.position;
      }
    }
    return (channel, symbol) => isBack === true && !begun.has(`${channel}/${symbol}`);
  }

  /** Whether a paused replay was moved forward since the last call; if so, all streams have moved. */
  hasGoneForward(now) {
    if (!this.#forwardAt || now - this.#forwardAt < STEP_MS) return false;
    this.#forwardAt = 0;
    return true;
  }
}

/** Times as text, from which the servers cut trailing zeros. */
const isAfter = (a, b) => Date.parse(a) > Date.parse(b);
