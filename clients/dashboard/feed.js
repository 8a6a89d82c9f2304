/**
 * A connection to a Tickcast stream that comes back by itself.
 *
 *     const stream = connect("ws://127.0.0.1:8000/stream", { onTick: (tick) => console.log(tick) });
 *     stream.subscribe({ trades: ["*"] }, { snapshot: true });
 *
 * @typedef {object} Handlers
 * @property {(tick: object) => void} [onTick] called with each trade, quote and bar, as on the wire
 * @property {(notice: object) => void} [onNotice] called with every other message of the server
 * @property {(state: State) => void} [onState] called whenever the state of the connection changes
 *
 * @typedef {object} State
 * @property {"connecting"|"connected"|"reconnecting"|"refused"|"closed"} name
 *   `connected` means that the server has confirmed every subscription; `refused` that it has turned
 *   one down, and `closed` that nobody tries any more
 * @property {string} reason in the server's words, or empty
 */

const SUBPROTOCOL = "tickcast.v1.json";
const BACKOFF_FIRST_MS = 250;
const BACKOFF_MAX_MS = 10_000;
/** A connection that held this long was a good one: the next cut starts with short delays again. */
const STABLE_MS = 5_000;
/** After so long without a word we ask for one, and after as long again the connection is dead. */
const QUIET_MS = 10_000;
const WATCH_MS = 2_000;
const TICKS = new Set(["t", "q", "b"]);

/**
 * Connect, and stay connected until `close` is called or the server says not to come back.
 *
 * @param {string} url ws:// or wss://, with the path `/stream` or `/v2/NAME`
 * @param {Handlers} handlers
 * @returns {Connection}
 */
export function connect(url, handlers) {
  return new Connection(url, handlers);
}

/** What `connect` returns. */
export class Connection {
  #url;
  #handlers;
  #socket = null;
  #ended = false;
  #lost = false;
  #state = "";
  #failures = 0;
  #openedAt = 0;
  #heardAt = 0;
  #askedAt = 0;
  #restartMs = 0;
  #timer = 0;
  #watch = 0;
  #lastId = 0;
  #wanted = [];
  #unconfirmed = new Map();

  constructor(url, handlers) {
    this.#url = url;
    this.#handlers = handlers;
    this.#watch = setInterval(() => this.#checkPulse(), WATCH_MS);
    window.addEventListener("online", this.#tryNow);
    this.#dial();
  }

  /**
   * Ask for streams, now and after every reconnection.
   *
   * @param {Record<string, string[]>} channels symbols by channel: `{trades: ["AAPL"], quotes: ["*"]}`
   * @param {object} [options] options of the protocol's `subscribe`, such as `{snapshot: true}`
   */
  subscribe(channels, options = {}) {
    const request = { ...channels, ...options };
    this.#wanted.push(request);
    if (this.#isOpen()) this.#request(request);
  }

  /** End the connection for good. */
  close() {
    this.#end("");
    this.#socket?.close(1000);
    this.#socket = null;
  }

  // -- one socket after the other

  #dial() {
    this.#tell(this.#lost ? "reconnecting" : "connecting");
    const socket = new WebSocket(this.#url, SUBPROTOCOL);
    this.#socket = socket;
    this.#openedAt = 0;
    this.#heardAt = performance.now();
    this.#askedAt = 0;
    this.#restartMs = 0;
    this.#unconfirmed.clear();
    // A socket that was given up may still speak; only the current one is heard.
    socket.onopen = () => socket === this.#socket && this.#greet();
    socket.onmessage = (event) => socket === this.#socket && this.#receive(event.data);
    socket.onclose = (event) => socket === this.#socket && this.#cut(event.code, event.reason);
  }

  #greet() {
    this.#openedAt = this.#heardAt = performance.now();
    this.#wanted.forEach((request) => this.#request(request));
    if (!this.#wanted.length) this.#tell("connected");
  }

  #cut(code, reason) {
    const now = performance.now();
    this.#socket = null;
    if (code >= 4000 && code < 4100) {
      this.#end(`${code} ${reason}`.trim());
      return;
    }
    this.#lost ||= this.#openedAt > 0;
    if (this.#openedAt && now - this.#openedAt > STABLE_MS) this.#failures = 0;
    const atOnce = code === 1012 || (code >= 4200 && code < 4300);
    // A server that keeps sending us away is not asked "at once" a second time.
    const delay = atOnce && this.#failures === 0 ? this.#restartMs : this.#backoff();
    this.#failures += 1;
    this.#tell(this.#lost ? "reconnecting" : "connecting", reason);
    this.#timer = setTimeout(() => this.#dial(), delay);
  }

  #backoff() {
    const longest = Math.min(BACKOFF_FIRST_MS * 2 ** this.#failures, BACKOFF_MAX_MS);
    return longest * (0.5 + Math.random() / 2);
  }

  #end(reason) {
    this.#ended = true;
    clearTimeout(this.#timer);
    clearInterval(this.#watch);
    window.removeEventListener("online", this.#tryNow);
    this.#tell("closed", reason);
  }

  #tryNow = () => {
    if (this.#socket || this.#ended) return;
    clearTimeout(this.#timer);
    this.#dial();
  };

  /** A browser hears nothing of a peer that vanished, so ask it from time to time. */
  #checkPulse() {
    const now = performance.now();
    if (!this.#socket || now - this.#heardAt < QUIET_MS) return;
    if (this.#isOpen() && !this.#askedAt) {
      this.#send({ action: "ping" });
      this.#askedAt = now;
    } else if (!this.#isOpen() || now - this.#askedAt >= QUIET_MS) {
      this.#socket.close();
      this.#cut(1006, "no answer");
    }
  }

  // -- messages

  #isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  #send(message) {
    this.#socket.send(JSON.stringify(message));
  }

  #request(request) {
    const id = ++this.#lastId;
    this.#unconfirmed.set(id, request);
    this.#send({ action: "subscribe", ...request, id });
  }

  #receive(text) {
    this.#heardAt = performance.now();
    this.#askedAt = 0;
    for (const message of JSON.parse(text)) {
      if (TICKS.has(message.T)) this.#handlers.onTick?.(message);
      else this.#notice(message);
    }
  }

  #notice(message) {
    this.#handlers.onNotice?.(message);
    if (message.T === "shutdown") this.#restartMs = message.retry_ms ?? 0;
    const request = this.#unconfirmed.get(message.id);
    if (request === undefined) return;
    this.#unconfirmed.delete(message.id);
    if (message.T !== "error") {
      if (this.#unconfirmed.size === 0) this.#tell("connected");
      return;
    }
    this.#tell("refused", `${message.code} ${message.msg}`);
    // 429 and 5xx pass; anything else would be the same the next time.
    if (message.code === 429 || message.code >= 500) this.#requestLater(request);
  }

  #requestLater(request) {
    const socket = this.#socket;
    this.#failures += 1;
    setTimeout(() => {
      if (socket === this.#socket && this.#isOpen()) this.#request(request);
    }, this.#backoff());
  }

  #tell(name, reason = "") {
    const state = `${name} ${reason}`;
    // While one attempt follows the other, the reason last given stays.
    if (state === this.#state || (!reason && this.#state.startsWith(`${name} `))) return;
    this.#state = state;
    this.#handlers.onState?.({ name, reason });
  }
}
