/**
 * A connection to a Tickcast stream that reconnects automatically and resumes every stream where it was.
 * It works in any page and has no other dependencies:
 *
 *     import { connect } from "http://127.0.0.1:8000/static/feed.js";
 *
 *     const stream = connect("ws://127.0.0.1:8000/stream", { onTick: (tick) => console.log(tick) });
 *     await stream.subscribe({ trades: ["*"] }, { snapshot: true });
 *
 * Every published tick is delivered, merged into a later one (its `cf`), or reported as a gap.
 *
 * @typedef {object} Handlers
 * @property {(tick: object) => void} [onTick] called with each trade, quote and bar, as on the wire,
 *   with times as text in both encodings
 * @property {(gap: import("./feed/book.js").Gap) => void} [onGap] called with ticks that will not
 *   come, at their place among the others
 * @property {(notice: object) => void} [onNotice] called with every other message of the server
 * @property {(state: State) => void} [onState] called whenever the state of the connection changes
 *
 * @typedef {object} State
 * @property {"connecting"|"connected"|"reconnecting"|"closed"} name `connected`: all
 *   subscriptions are restored; `closed`: the client no longer tries to connect
 * @property {string} reason in the server's words, or empty
 * @property {number} code if closed, the close code or the code of the error; 0 if we closed.
 *   401, 402, 4001 and 4002 mean that credentials are needed, or other ones
 */

import { Backoff, Pace } from "./feed/backoff.js";
import { CHECK_EVERY_MS, Pulse } from "./feed/pulse.js";
import { Requests } from "./feed/requests.js";
import { ClientState, Refused } from "./feed/state.js";
import { sizeOf, subprotocolOf } from "./feed/wire.js";

export { Refused };

const NOT_CLOSED_BY_US = 1006;
const NOT_AUTHENTICATED = 401;
const ALREADY_AUTHENTICATED = 403;

/**
 * Connect, and stay connected until `close` is called or the server tells us not to reconnect.
 *
 * @param {string} url ws:// or wss://, with the path `/stream` or `/v2/NAME`
 * @param {Handlers} [handlers]
 * @param {{encoding?: "json"|"msgpack", configure?: object[], token?: string}} [options]
 *   `configure`: maps of keys for the protocol's action of that name, such as `{stamps: true}`; the
 *   client sends each as a separate message, on every connection. `token`: a JSON Web Token or the secret
 *   of a key, sent first on every connection; it is never part of a URL
 * @returns {Stream}
 */
export function connect(url, handlers = {}, options = {}) {
  return new Stream(url, handlers, options);
}

/** The result of `connect`. `received` counts over all connections. */
export class Stream {
  reconnects = 0;
  received = { bytes: 0, frames: 0, ticks: 0 };
  #url;
  #handlers;
  #configure;
  #token;
  #state;
  #backoff = new Backoff();
  #socket = null;
  #told = "";
  #ended = false;
  /** When all subscriptions were first restored on this connection, and when that ended. */
  #heldAt = 0;
  #lostAt = 0;
  #pulse = new Pulse();
  #timer = 0;
  #watch = 0;
  #requests = new Requests();
  #comingBack = [];
  /** When to repeat the first of them, if the server refused it for coming too soon. */
  #pace = new Pace();
  /** The id of our credentials message, until it is answered. */
  #authAsked = 0;

  constructor(url, handlers, { encoding = "json", configure = [], token = "" } = {}) {
    this.#url = url;
    this.#handlers = handlers;
    this.#configure = configure;
    this.#token = token;
    this.#state = new ClientState(encoding);
    this.#watch = setInterval(() => this.#checkPulse(), CHECK_EVERY_MS);
    globalThis.addEventListener?.("online", this.#tryNow);
    globalThis.document?.addEventListener("visibilitychange", this.#tryNow);
    this.#dial();
  }

  /**
   * Add subscriptions that persist: they are requested again after every lost connection.
   *
   * @param {Record<string, string[]>} channels symbols by channel: `{trades: ["AAPL"], quotes: ["*"]}`
   * @param {{snapshot?: boolean} & import("./feed/comeback.js").Wish} [options] `snapshot`,
   *   `start`, `conflate_ms` and `slow` of the protocol; and `resume_ms`: after a longer interruption,
   *   the server sends the latest tick of each stream instead of all that were missed
   * @returns {Promise<object>} the server's reply; rejected with `Refused`
   */
  subscribe(channels, { snapshot, ...wish } = {}) {
    return this.#request(() => this.#state.subscribe(channels, wish, { snapshot }));
  }

  /** Remove subscriptions; returns what `subscribe` does. */
  unsubscribe(channels) {
    return this.#request(() => this.#state.unsubscribe(channels));
  }

  /** Ask the server for its clock: `{T: "pong", t}`. */
  ping() {
    return this.#request(() => this.#state.ask({ action: "ping" }));
  }

  /**
   * Send a message without an `id`, such as `{action: "replay.pause"}`; the server's answer goes to
   * `onNotice`.
   *
   * @param {object} message
   * @returns {boolean} whether it was sent; it is not sent while there is no connection
   */
  say(message) {
    if (this.#heldAt) this.#send({ message });
    return this.#heldAt > 0;
  }

  /** The accounts of all ticks: sums of `delivered`, `merged`, `skipped`, `gapped`, … */
  totals() {
    return this.#state.books.totals();
  }

  /** Connect now, without waiting for the next attempt. */
  retry() {
    if (this.#ended || this.#socket) return;
    clearTimeout(this.#timer);
    this.#dial();
  }

  /**
   * The position of a stream: the last number that is accounted for, in its epoch.
   *
   * @returns {{epoch: string, seq: number|null}} an empty epoch and null if the position is unknown
   */
  position(channel, symbol) {
    return this.#state.books.position(channel, symbol);
  }

  /** Milliseconds since the server last sent anything on this connection. */
  get silentMs() {
    return this.#heldAt ? performance.now() - this.#pulse.heardAt : 0;
  }

  get encoding() {
    return this.#state.encoding;
  }

  /** Reconnect in another encoding, and resume every stream where it was. */
  set encoding(encoding) {
    if (encoding === this.#state.encoding) return;
    this.#state.encoding = encoding;
    if (this.#ended) return;
    this.#leave();
    this.#dial();
  }

  /** Close the connection permanently. */
  close() {
    this.#end("", 0);
    this.#leave();
  }

  // -- one socket after the other

  #dial() {
    this.#tell(this.#lostAt ? "reconnecting" : "connecting");
    const socket = new WebSocket(this.#url, subprotocolOf(this.#state.encoding));
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#pulse.begin(performance.now());
    // A discarded socket may still deliver messages; only the current one counts.
    socket.onopen = () => socket === this.#socket && this.#greet();
    socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(data);
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#cut(code, reason);
  }

  #greet() {
    this.#pulse.hear(performance.now());
    this.#state.connected(this.#socket.protocol);
    if (!this.#token) {
      this.#introduce();
      return;
    }
    // Until the server has checked the credentials, it refuses everything else.
    const question = this.#state.ask({ action: "auth", token: this.#token });
    this.#authAsked = question.id;
    this.#send(question);
  }

  #introduce() {
    for (const keys of this.#configure) this.#send(this.#state.ask({ action: "configure", ...keys }));
    const awayMs = this.#lostAt ? this.#pulse.heardAt - this.#lostAt : 0;
    this.#comingBack = this.#lostAt ? this.#state.subscribeAgain(awayMs) : [];
    this.#pace.granted();
    this.#goOn();
  }

  /** Send the next message that restores the subscriptions; after the last one, all waiting requests. */
  #goOn() {
    const next = this.#comingBack[0];
    if (next) {
      this.#send(next);
      return;
    }
    if (this.#lostAt) this.reconnects += 1;
    this.#lostAt = 0;
    this.#heldAt = performance.now();
    this.#tell("connected");
    for (const request of this.#requests.takeUnasked()) this.#ask(request);
  }

  #cut(code, reason) {
    const now = performance.now();
    const lasted = this.#heldAt ? now - this.#heldAt : 0;
    this.#leave();
    const delay = this.#backoff.afterClose(code, lasted, this.#state.retryMs);
    if (delay === null) {
      this.#end(`${code} ${reason}`.trim(), code);
      return;
    }
    this.#tell(this.#lostAt ? "reconnecting" : "connecting", reason);
    this.#timer = setTimeout(() => this.#dial(), delay);
  }

  /** Discard the socket; unanswered requests are sent again on the next one. */
  #leave() {
    if (this.#heldAt) this.#lostAt ||= performance.now();
    this.#heldAt = 0;
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
    this.#socket = null;
    this.#requests.cut();
    this.#comingBack = [];
    this.#authAsked = 0;
  }

  #end(reason, code) {
    this.#ended = true;
    clearTimeout(this.#timer);
    clearInterval(this.#watch);
    globalThis.removeEventListener?.("online", this.#tryNow);
    globalThis.document?.removeEventListener("visibilitychange", this.#tryNow);
    this.#tell("closed", reason, code);
    this.#requests.end(new Error(`the stream has ended ${reason}`.trim()));
  }

  /** The network is back, or the page is visible again: reconnect without further delay. */
  #tryNow = () => {
    if (globalThis.document?.hidden || this.#ended) return;
    if (this.#socket) this.#checkPulse();
    else this.retry();
  };

  /** A browser gets no notice when a peer vanishes, so ping it from time to time. */
  #checkPulse() {
    const isOpen = this.#isOpen();
    const verdict = this.#pulse.check(performance.now(), isOpen);
    if (!this.#socket) return;
    if (verdict === "dead") this.#cut(NOT_CLOSED_BY_US, isOpen ? "the server is silent" : "no answer");
    else if (verdict === "ask") this.#sendPing();
  }

  #sendPing() {
    // While the server checks our credentials, it would refuse anything else; its answer is sign enough.
    if (this.#authAsked) return;
    this.#send(this.#state.ask({ action: "ping" }));
  }

  #isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  // -- messages

  #send({ message }) {
    this.#socket.send(this.#state.encode(message));
  }

  #request(build) {
    if (this.#ended) return Promise.reject(new Error("the stream has ended"));
    return new Promise((resolve, reject) => {
      const request = { build, resolve, reject };
      if (this.#heldAt) this.#ask(request);
      else this.#requests.askLater(request);
    });
  }

  #ask(request) {
    const question = request.build();
    this.#requests.asked(question.id, request);
    this.#send(question);
  }

  #receive(data) {
    this.#pulse.hear(performance.now());
    this.received.frames += 1;
    this.received.bytes += sizeOf(data);
    const { seen, notices } = this.#state.receive(data);
    for (const item of seen) {
      if (item.T === "gap") {
        this.#handlers.onGap?.(item);
      } else {
        this.received.ticks += 1;
        this.#handlers.onTick?.(item);
      }
    }
    for (const notice of notices) this.#take(notice);
    const question = this.#heldAt ? this.#state.askEpoch() : null;
    if (question) this.#send(question);
  }

  #take(notice) {
    this.#handlers.onNotice?.(notice);
    if (notice.T === "error" && notice.code === NOT_AUTHENTICATED) {
      this.#leave();
      this.#end(`${notice.code} ${notice.msg}`, notice.code);
      return;
    }
    if (this.#authAsked && this.#answersAuth(notice)) {
      this.#authAsked = 0;
      this.#introduce();
      return;
    }
    if (this.#comingBack.length && notice.id === this.#comingBack[0].id) {
      this.#takeBack(notice);
      return;
    }
    const request = this.#requests.answered(notice.id);
    if (!request) return;
    if (notice.T !== "error") request.resolve(notice);
    else this.#refuse(request, new Refused(notice));
  }

  /** Whether the server has accepted our credentials. If it has not, it closes the connection. */
  #answersAuth({ T, id, msg, code }) {
    if (T === "success") return id === this.#authAsked || msg === "authenticated";
    return T === "error" && code === ALREADY_AUTHENTICATED;
  }

  /** Handle an answer to a message that restores the subscriptions. */
  #takeBack(notice) {
    if (notice.T !== "error") {
      this.#comingBack.shift();
      this.#pace.granted();
      this.#goOn();
      return;
    }
    const delay = this.#pace.afterRefusal(notice.code);
    if (delay !== null) {
      this.#timer = setTimeout(() => this.#goOn(), delay);
      return;
    }
    const refused = new Refused(notice);
    if (refused.isPassing) {
      this.#cut(NOT_CLOSED_BY_US, refused.message);
    } else {
      this.#leave();
      this.#end(refused.message, refused.code);
    }
  }

  #refuse(request, refused) {
    if (!refused.isPassing) {
      request.reject(refused);
      return;
    }
    const again = () => (this.#heldAt ? this.#ask(request) : this.#requests.askLater(request));
    setTimeout(() => !this.#ended && again(), this.#backoff.afterFailure());
  }

  #tell(name, reason = "", code = 0) {
    const told = `${name} ${reason}`;
    // While attempts follow one another, the last known reason stays.
    if (told === this.#told || (!reason && this.#told.startsWith(`${name} `))) return;
    this.#told = told;
    this.#handlers.onState?.({ name, reason, code });
  }
}
