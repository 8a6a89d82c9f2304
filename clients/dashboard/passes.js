/**
 * Which streams of a replay have gone to another time. A replay that goes back tells so, but in a loop
 * only within a second; and each stream tells by a gap, but only with its next tick. Whichever comes
 * first, what came before it is of another pass, and what comes after it is of this one.
 *
 * A paused replay that is sent forward has no tick for that, so its new position tells. A step moves
 * the position as well, but brings ticks.
 *
 * One for each connection: its gaps and its words of the replay come in the order of the ticks.
 */

/** A tick of a step comes within that time before or after the word of it. */
const STEP_MS = 500;

export class Passes {
  #state = undefined;
  /** Streams that have begun anew since the last word of the replay. */
  #begun = new Set();
  #lastTime = "";
  /** When a paused replay went forward, and from where; 0: it did not. */
  #forwardAt = 0;
  #forwardFrom = "";

  /** The replay's latest word; undefined where there is none. */
  get state() {
    return this.#state;
  }

  /** Where the replay stood lately, milliseconds since 1970; undefined where none is known. */
  get positionMs() {
    return this.#state && Date.parse(this.#state.position);
  }

  /** @param {{t: string}} tick any that has come */
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
   * @returns {(channel: string, symbol: string) => boolean} whether what is known of a stream is of
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

  /** Whether a paused replay was sent forward since this was last asked: all streams are elsewhere. */
  hasGoneForward(now) {
    if (!this.#forwardAt || now - this.#forwardAt < STEP_MS) return false;
    this.#forwardAt = 0;
    return true;
  }
}

/** Times as text, of which the servers cut zeros at the end. */
const isAfter = (a, b) => Date.parse(a) > Date.parse(b);
