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
 * @property {(gap: import("./feed/accounts.js").Gap) => void} [onGap] called with ticks that will not
 *   arrive, in order with the ticks
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

import {
  CHECK_EVERY_MS,
  LivenessCheck,
  PendingRequests,
  RateLimitDelays,
  ReconnectDelays,
} from "./feed/connection.js";
import { ClientState, Refused } from "./feed/state.js";
import { sizeOf, subprotocolOf } from "./feed/wire.js";

export { Refused };

/** What browsers report for a connection that was cut. */
const CUT = 1006;
const NOT_AUTHENTICATED = 401;
const ALREADY_AUTHENTICATED = 403;
const EPOCH_REQUEST_MS = 1000;

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
  #delays = new ReconnectDelays();
  #socket = null;
  /** What `onState` was last called with, as text. */
  #reported = "";
  #ended = false;
  /** When all subscriptions were in place on this connection, or 0; and when that ended, or 0. */
  #connectedAt = 0;
  #lostAt = 0;
  #liveness = new LivenessCheck();
  #timer = 0;
  #livenessTimer = 0;
  #epochTimer = 0;
  #epochRequestAt = 0;
  #requests = new PendingRequests();
  /** The messages left to send that restore the subscriptions. */
  #restoring = [];
  #rateLimit = new RateLimitDelays();
  /** The id of our credentials message, until it is answered. */
  #authRequest = 0;

  constructor(url, handlers, { encoding = "json", configure = [], token = "" } = {}) {
    this.#url = url;
    this.#handlers = handlers;
    this.#configure = configure;
    this.#token = token;
    this.#state = new ClientState(encoding);
    this.#livenessTimer = setInterval(() => this.#checkLiveness(), CHECK_EVERY_MS);
    globalThis.addEventListener?.("online", this.#reconnectNow);
    globalThis.document?.addEventListener("visibilitychange", this.#reconnectNow);
    this.#open();
  }

  /**
   * Add subscriptions that persist: they are requested again after every lost connection.
   *
   * @param {Record<string, string[]>} channels symbols by channel: `{trades: ["AAPL"], quotes: ["*"]}`
   * @param {{snapshot?: boolean} & import("./feed/resume.js").RequestedOptions} [options] `snapshot`,
   *   `start`, `conflate_ms` and `slow` of the protocol; and `resume_ms`: after a longer interruption,
   *   the server sends the latest tick of each stream instead of all that were missed
   * @returns {Promise<object>} the server's reply; rejected with `Refused`
   */
  subscribe(channels, { snapshot, ...options } = {}) {
    return this.#request(() => this.#state.subscribe(channels, options, { snapshot }));
  }

  /** Remove subscriptions; returns what `subscribe` does. */
  unsubscribe(channels) {
    return this.#request(() => this.#state.unsubscribe(channels));
  }

  /** Ask the server for its clock: `{T: "pong", t}`. */
  ping() {
    return this.#request(() => this.#state.request({ action: "ping" }));
  }

  /**
   * Send a message without an `id`, such as `{action: "replay.pause"}`; the reply goes to `onNotice`.
   *
   * @param {object} message
   * @returns {boolean} whether it was sent; it is not sent while there is no connection
   */
  send(message) {
    if (this.#connectedAt) this.#send({ message });
    return this.#connectedAt > 0;
  }

  /** The accounts of all ticks: sums of `delivered`, `merged`, `skipped`, `gapped`, … */
  totals() {
    return this.#state.accounts.totals();
  }

  /** Connect now, without waiting for the next attempt. */
  retry() {
    if (this.#ended || this.#socket) return;
    clearTimeout(this.#timer);
    this.#open();
  }

  /**
   * The position of a stream: the last number that is accounted for, in its epoch.
   *
   * @returns {{epoch: string, seq: number|null}} an empty epoch and null if the position is unknown
   */
  position(channel, symbol) {
    return this.#state.accounts.position(channel, symbol);
  }

  /** Milliseconds since the server last sent anything on this connection. */
  get silentMs() {
    return this.#connectedAt ? performance.now() - this.#liveness.receivedAt : 0;
  }

  get encoding() {
    return this.#state.encoding;
  }

  /** Reconnect in another encoding, and resume every stream where it was. */
  set encoding(encoding) {
    if (encoding === this.#state.encoding) return;
    this.#state.encoding = encoding;
    if (this.#ended) return;
    this.#dropSocket();
    this.#open();
  }

  /** Close the connection permanently. */
  close() {
    this.#end("", 0);
    this.#dropSocket();
  }

  // -- one socket after the other

  #open() {
    this.#report(this.#lostAt ? "reconnecting" : "connecting");
    const socket = new WebSocket(this.#url, subprotocolOf(this.#state.encoding));
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#liveness.begin(performance.now());
    // A discarded socket may still deliver messages; only the current one counts.
    socket.onopen = () => socket === this.#socket && this.#onOpen();
    socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(data);
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#onClose(code, reason);
  }

  #onOpen() {
    this.#liveness.recordMessage(performance.now());
    this.#state.beginConnection(this.#socket.protocol);
    if (!this.#token) {
      this.#configureAndRestore();
      return;
    }
    // Until the server has checked the credentials, it refuses everything else.
    const request = this.#state.request({ action: "auth", token: this.#token });
    this.#authRequest = request.id;
    this.#send(request);
  }

  #configureAndRestore() {
    for (const keys of this.#configure) this.#send(this.#state.request({ action: "configure", ...keys }));
    const cutMs = this.#lostAt ? this.#liveness.receivedAt - this.#lostAt : 0;
    this.#restoring = this.#lostAt ? this.#state.restore(cutMs) : [];
    this.#rateLimit.reset();
    this.#restoreNext();
  }

  /** Send the next message that restores the subscriptions; after the last one, all waiting requests. */
  #restoreNext() {
    const next = this.#restoring[0];
    if (next) {
      this.#send(next);
      return;
    }
    if (this.#lostAt) this.reconnects += 1;
    this.#lostAt = 0;
    this.#connectedAt = performance.now();
    this.#report("connected");
    for (const request of this.#requests.takeUnsent()) this.#sendRequest(request);
  }

  #onClose(code, reason) {
    const now = performance.now();
    const lasted = this.#connectedAt ? now - this.#connectedAt : 0;
    this.#dropSocket();
    const delay = this.#delays.afterClose(code, lasted, this.#state.retryMs);
    if (delay === null) {
      this.#end(`${code} ${reason}`.trim(), code);
      return;
    }
    this.#report(this.#lostAt ? "reconnecting" : "connecting", reason);
    this.#timer = setTimeout(() => this.#open(), delay);
  }

  /** Discard the socket; unanswered requests are sent again on the next one. */
  #dropSocket() {
    if (this.#connectedAt) this.#lostAt ||= performance.now();
    this.#connectedAt = 0;
    clearTimeout(this.#timer);
    clearTimeout(this.#epochTimer);
    this.#epochTimer = 0;
    this.#socket?.close(1000);
    this.#socket = null;
    this.#requests.resetSent();
    this.#restoring = [];
    this.#authRequest = 0;
  }

  #end(reason, code) {
    this.#ended = true;
    clearTimeout(this.#timer);
    clearInterval(this.#livenessTimer);
    globalThis.removeEventListener?.("online", this.#reconnectNow);
    globalThis.document?.removeEventListener("visibilitychange", this.#reconnectNow);
    this.#report("closed", reason, code);
    this.#requests.end(new Error(`the stream has ended ${reason}`.trim()));
  }

  /** The network is back, or the page is visible again: reconnect without further delay. */
  #reconnectNow = () => {
    if (globalThis.document?.hidden || this.#ended) return;
    if (this.#socket) this.#checkLiveness();
    else this.retry();
  };

  /** A browser gets no notice when a peer vanishes, so ping it from time to time. */
  #checkLiveness() {
    const isOpen = this.#isOpen();
    const verdict = this.#liveness.check(performance.now(), isOpen);
    if (!this.#socket) return;
    if (verdict === "dead") this.#onClose(CUT, isOpen ? "the server is silent" : "no answer");
    else if (verdict === "ping") this.#sendPing();
  }

  #sendPing() {
    // While the server checks our credentials, it would refuse anything else; its answer is sign enough.
    if (this.#authRequest) return;
    this.#send(this.#state.request({ action: "ping" }));
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
      if (this.#connectedAt) this.#sendRequest(request);
      else this.#requests.postpone(request);
    });
  }

  #sendRequest(request) {
    const built = request.build();
    this.#requests.addSent(built.id, request);
    this.#send(built);
  }

  #receive(data) {
    this.#liveness.recordMessage(performance.now());
    this.received.frames += 1;
    this.received.bytes += sizeOf(data);
    const { items, notices } = this.#state.receiveFrame(data);
    for (const item of items) {
      if (item.T === "gap") {
        this.#handlers.onGap?.(item);
      } else {
        this.received.ticks += 1;
        this.#handlers.onTick?.(item);
      }
    }
    for (const notice of notices) this.#processNotice(notice);
    this.#requestEpoch();
  }

  /** Request the epoch of new streams, at most once a second: the server limits messages. */
  #requestEpoch() {
    if (!this.#connectedAt || !this.#state.needsEpoch || this.#epochTimer) return;
    const waitMs = this.#epochRequestAt - performance.now();
    if (waitMs > 0) {
      this.#epochTimer = setTimeout(() => {
        this.#epochTimer = 0;
        this.#requestEpoch();
      }, waitMs);
      return;
    }
    this.#epochRequestAt = performance.now() + EPOCH_REQUEST_MS;
    this.#send(this.#state.requestEpoch());
  }

  #processNotice(notice) {
    this.#handlers.onNotice?.(notice);
    if (notice.T === "error" && notice.code === NOT_AUTHENTICATED) {
      this.#dropSocket();
      this.#end(`${notice.code} ${notice.msg}`, notice.code);
      return;
    }
    if (this.#authRequest && this.#acceptsAuth(notice)) {
      this.#authRequest = 0;
      this.#configureAndRestore();
      return;
    }
    if (this.#restoring.length && notice.id === this.#restoring[0].id) {
      this.#processRestoreReply(notice);
      return;
    }
    const request = this.#requests.takeAnswered(notice.id);
    if (!request) return;
    if (notice.T !== "error") request.resolve(notice);
    else this.#refuse(request, new Refused(notice));
  }

  /** Whether the server has accepted our credentials. If it has not, it closes the connection. */
  #acceptsAuth({ T, id, msg, code }) {
    if (T === "success") return id === this.#authRequest || msg === "authenticated";
    return T === "error" && code === ALREADY_AUTHENTICATED;
  }

  /** Handle an answer to a message that restores the subscriptions. */
  #processRestoreReply(notice) {
    if (notice.T !== "error") {
      this.#restoring.shift();
      this.#rateLimit.reset();
      this.#restoreNext();
      return;
    }
    const delay = this.#rateLimit.afterRefusal(notice.code);
    if (delay !== null) {
      this.#timer = setTimeout(() => this.#restoreNext(), delay);
      return;
    }
    const refused = new Refused(notice);
    if (refused.isTemporary) {
      this.#onClose(CUT, refused.message);
    } else {
      this.#dropSocket();
      this.#end(refused.message, refused.code);
    }
  }

  #refuse(request, refused) {
    if (!refused.isTemporary) {
      request.reject(refused);
      return;
    }
    const again = () => (this.#connectedAt ? this.#sendRequest(request) : this.#requests.postpone(request));
    setTimeout(() => !this.#ended && again(), this.#delays.afterFailure());
  }

  #report(name, reason = "", code = 0) {
    const text = `${name} ${reason}`;
    // While attempts follow one another, the last known reason stays.
    if (text === this.#reported || (!reason && this.#reported.startsWith(`${name} `))) return;
    this.#reported = text;
    this.#handlers.onState?.({ name, reason, code });
  }
}
