/**
 * Which streams of a replay have gone back in time. A replay that goes back tells so, but in a loop
 * only within a second; and each stream tells by a gap, but only with its next tick. Whichever comes
 * first, what came before it is of another pass, and what comes after it is of this one.
 *
 * One for each connection: its gaps and its words of the replay come in the order of the ticks.
 */

export class Passes {
  #state = undefined;
  /** Streams that have begun anew since the last word of the replay. */
  #begun = new Set();

  /** Where the replay stood lately, milliseconds since 1970; undefined where none is known. */
  get positionMs() {
    return this.#state && Date.parse(this.#state.position);
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
   * @returns {(channel: string, symbol: string) => boolean} whether what is known of a stream is of
   *   an earlier pass
   */
  takeState(state) {
    const isBack = this.#state && Date.parse(state.position) < Date.parse(this.#state.position);
    const begun = this.#begun;
    this.#state = state;
    this.#begun = new Set();
    return (channel, symbol) => isBack === true && !begun.has(`${channel}/${symbol}`);
  }
}
