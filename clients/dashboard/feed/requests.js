/**
 * What is asked of the server and not answered. What a cut leaves unanswered is asked again.
 *
 * @typedef {object} Request
 * @property {() => {id: number, message: object}} build the message, made anew each time it is asked
 * @property {(answer: object) => void} resolve
 * @property {(error: Error) => void} reject
 */

export class Requests {
  /** @type {Map<number, Request>} */
  #waiting = new Map();
  /** @type {Request[]} */
  #unasked = [];

  /** @param {Request} request to be asked on the next connection */
  askLater(request) {
    this.#unasked.push(request);
  }

  /** All that is to be asked now, in order. */
  takeUnasked() {
    return this.#unasked.splice(0);
  }

  asked(id, request) {
    this.#waiting.set(id, request);
  }

  /** @returns {Request|undefined} the one with this id, which waits no longer */
  answered(id) {
    const request = this.#waiting.get(id);
    this.#waiting.delete(id);
    return request;
  }

  /** The connection is gone. */
  cut() {
    this.#unasked.unshift(...this.#waiting.values());
    this.#waiting.clear();
  }

  /** Nobody will answer any more. */
  end(error) {
    this.cut();
    for (const { reject } of this.takeUnasked()) reject(error);
  }
}
