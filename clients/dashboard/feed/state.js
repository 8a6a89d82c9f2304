/**
 * A client's side of the conversation, without I/O: frames in, ticks, gaps and notices out. The
 * counterpart of `tickcast/client/state.py`.
 */

import { Books } from "./books.js";
import { ComeBack, over, subscribe, unsubscribe } from "./comeback.js";
import { Coverage, entriesOf, isWildcard, keyOf } from "./subscriptions.js";
import { decode, encode, encodedSize } from "./wire.js";

/** The maximum size of our messages: servers accept 64 KiB. */
const MESSAGE_BYTES = 60_000;
const CHANNELS = { t: "trades", q: "quotes" };
/** Error codes for extensions that a server does not know, and for requests that it may grant later. */
const UNKNOWN = new Set([400, 410]);
const PASSING = new Set([429, 500, 503]);

/** The server answered with an error. */
export class Refused extends Error {
  constructor(notice) {
    super(`the server refused: ${notice.code} ${notice.msg}`);
    this.name = "Refused";
    this.code = notice.code;
  }

  /** Whether the same request may be granted later. */
  get isPassing() {
    return PASSING.has(this.code);
  }

  /** Whether this is how a server answers extensions that it does not know. */
  get isOfTheUnknown() {
    return UNKNOWN.has(this.code);
  }
}

/** What a client must remember to decode messages, and to resume after a lost connection. */
export class ClientState {
  books = new Books();
  /** Whether the server knows our extensions, as far as we have seen. */
  extended = true;
  /** When to reconnect, if the server gave a delay before it shut down. */
  retryMs = 0;
  #wishes = new Map();
  #asked = new Map();
  #epochAsked = 0;
  #lastId = 0;

  /** @param {"json"|"msgpack"} encoding of the next connection; may be changed at any time */
  constructor(encoding = "json") {
    this.encoding = encoding;
  }

  /** Begin another connection, on which the server has accepted this subprotocol; "" means none. */
  connected(subprotocol) {
    this.extended = subprotocol !== "";
    this.retryMs = 0;
    this.#asked.clear();
    this.#epochAsked = 0;
  }

  // -- incoming messages

  /**
   * Decode one message of the server. Throws an error if it is not valid.
   *
   * @param {string|ArrayBuffer} data
   * @returns {{seen: object[], notices: object[]}} for the page: ticks and gaps, as on the wire and in
   *   order; and all other messages of the server
   */
  receive(data) {
    return this.take(decode(data));
  }

  /** Process messages that are already decoded. */
  take(messages) {
    const seen = [];
    const notices = [];
    for (const message of messages) {
      const channel = CHANNELS[message.T] ?? (message.T === "b" ? barChannel(message) : undefined);
      if (channel) {
        this.books.take(channel, message, seen);
      } else {
        notices.push(message);
        this.#takeNotice(message, seen);
      }
    }
    return { seen, notices };
  }

  #takeNotice(notice, seen) {
    if (notice.T === "gap" || notice.T === "skipped") this.books.takeNotice(notice, seen);
    else if (notice.T === "shutdown") this.retryMs = notice.retry_ms;
    else if (notice.T === "subscription" || notice.T === "error") this.#takeReply(notice);
  }

  #takeReply(notice) {
    if (notice.id === undefined && !this.extended && this.#asked.size) {
      // This server answers requests one by one, in order, but does not know ids.
      notice.id = this.#asked.keys().next().value;
    }
    const asked = this.#asked.get(notice.id) ?? [];
    this.#asked.delete(notice.id);
    if (notice.id === this.#epochAsked) this.#epochAsked = 0;
    if (notice.T === "subscription") this.#takeSubscription(notice, asked);
  }

  #takeSubscription(notice, asked) {
    const held = new Coverage(this.#entries());
    // Don't use the listed subscriptions: after a reconnect they are only those requested so far.
    for (const { entry, wish } of asked) {
      const key = keyOf(...entry);
      const before = this.#wishes.get(key);
      if (!wish) this.#wishes.delete(key);
      else this.#wishes.set(key, { entry, wish: before ? over(wish, before.wish) : wish });
    }
    this.books.keepPositions(this.#entries());
    if (notice.epoch === undefined) return;
    this.books.nameEpoch(notice.epoch);
    if (notice.positions === undefined) return;
    this.books.standAt(notice.positions);
    for (const { entry, wish } of asked) {
      if (!wish || isWildcard(entry[1]) || wish.start !== undefined) continue;
      if (!held.covers(...entry) && this.books.book(...entry).seq === null) {
        // If the reply does not give it, nothing was published yet.
        this.books.place(...entry, notice.epoch, 0);
      }
    }
  }

  #entries() {
    return Array.from(this.#wishes.values(), ({ entry }) => entry);
  }

  // -- outgoing messages: each method returns `{id, message}`, the message as a map

  /**
   * The message that adds subscriptions.
   *
   * @param {Record<string, string[]>} channels
   * @param {import("./comeback.js").Wish} wish
   * @param {{snapshot?: boolean}} [options]
   */
  subscribe(channels, wish, { snapshot } = {}) {
    const entries = entriesOf(channels);
    const options = snapshot ? { snapshot: true } : {};
    if (this.extended) options.positions = true;
    const changes = entries.map((entry) => ({ entry, wish }));
    return this.#ask(subscribe(entries, wish, options), changes);
  }

  /** The message that removes subscriptions. */
  unsubscribe(channels) {
    const entries = entriesOf(channels);
    return this.#ask(unsubscribe(entries), entries.map((entry) => ({ entry, wish: null })));
  }

  /** Any other message. */
  ask(fields) {
    return this.#ask(fields, []);
  }

  /** The message that asks for the epoch after a numbering has begun: one at a time, or null. */
  askEpoch() {
    if (!this.books.lacksEpoch || this.#epochAsked || !this.extended) return null;
    this.books.lacksEpoch = false;
    const question = this.#ask({ action: "list" }, []);
    this.#epochAsked = question.id;
    return question;
  }

  /**
   * The messages that request all subscriptions after a reconnect, from their positions. Send each
   * when the previous one has been answered.
   *
   * @param {number} awayMs how long the connection was down
   */
  subscribeAgain(awayMs = 0) {
    if (this.extended) this.books.insistOnEpochs();
    else this.books.resumeUnasked();
    const size = (fields) => encodedSize(fields, this.encoding);
    const comeBack = new ComeBack(this.extended ? this.books : null, size, MESSAGE_BYTES, awayMs);
    const messages = [...comeBack.messages(this.#wishes.values())];
    return messages.map((fields) => this.#ask(fields, []));
  }

  /** Encode a message in the encoding of this connection. */
  encode(message) {
    return encode(message, this.encoding);
  }

  /** Give a message its `id`, and record what its success will change. */
  #ask(fields, changes) {
    const id = ++this.#lastId;
    this.#asked.set(id, changes);
    return { id, message: { ...fields, id } };
  }
}

function barChannel({ tf }) {
  return tf === undefined ? "bars" : `bars:${tf}`;
}
