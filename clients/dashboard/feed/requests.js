/**
 * Requests that the server has not answered yet. After a lost connection they are sent again.
 *
 * @typedef {object} Request
 * @property {() => {id: number, message: object}} build makes the message anew each time it is sent
 * @property {(answer: object) => void} resolve
 * @property {(error: Error) => void} reject
 */

export class Requests {
  /** @type {Map<number, Request>} */
  #waiting = new Map();
  /** @type {Request[]} */
  #unasked = [];

  /** @param {Request} request to be sent on the next connection */
  askLater(request) {
    this.#unasked.push(request);
  }

  /** All requests to send now, in order. */
  takeUnasked() {
    return this.#unasked.splice(0);
  }

  asked(id, request) {
    this.#waiting.set(id, request);
  }

  /** @returns {Request|undefined} the request with this id, which no longer waits */
  answered(id) {
    const request = this.#waiting.get(id);
    this.#waiting.delete(id);
    return request;
  }

  /** The connection is lost. */
  cut() {
    this.#unasked.unshift(...this.#waiting.values());
    this.#waiting.clear();
  }

  /** No answer will arrive for any request. */
  end(error) {
    this.cut();
    for (const { reject } of this.takeUnasked()) reject(error);
  }
}
