/**
 * A client's half of the conversation, without I/O: frames in, ticks, gaps and notices out. The twin
 * of `clients/state.py`.
 */

import { Books } from "./books.js";
import { ComeBack, over, subscribe, unsubscribe } from "./comeback.js";
import { Coverage, entriesOf, isWildcard, keyOf } from "./subscriptions.js";
import { decode, encode, encodedSize } from "./wire.js";

/** What one message of ours may take: servers accept 64 KiB. */
const MESSAGE_BYTES = 60_000;
const CHANNELS = { t: "trades", q: "quotes" };
/** What a server says of extensions that it does not know, and of what it may grant later. */
const UNKNOWN = new Set([400, 410]);
const PASSING = new Set([429, 500, 503]);

/** The server has answered with an error. */
export class Refused extends Error {
  constructor(notice) {
    super(`the server refused: ${notice.code} ${notice.msg}`);
    this.name = "Refused";
    this.code = notice.code;
  }

  /** Whether the same may be granted later. */
  get isPassing() {
    return PASSING.has(this.code);
  }

  /** Whether that is what a server says of extensions that it does not know. */
  get isOfTheUnknown() {
    return UNKNOWN.has(this.code);
  }
}

/** What a client must remember to read its messages, and to take up again after a cut. */
export class ClientState {
  books = new Books();
  /** Whether the server knows our extensions, as far as was seen. */
  extended = true;
  /** When to come back, where the server has said so before it shut down. */
  retryMs = 0;
  #wishes = new Map();
  #asked = new Map();
  #epochAsked = 0;
  #lastId = 0;

  /** @param {"json"|"msgpack"} encoding of the next connection; may be changed at any time */
  constructor(encoding = "json") {
    this.encoding = encoding;
  }

  /** Begin another connection, on which the server has accepted this subprotocol, or none: "". */
  connected(subprotocol) {
    this.extended = subprotocol !== "";
    this.retryMs = 0;
    this.#asked.clear();
    this.#epochAsked = 0;
  }

  // -- what comes

  /**
   * Take one message of the server apart. Throws an error where it is none.
   *
   * @param {string|ArrayBuffer} data
   * @returns {{seen: object[], notices: object[]}} what the page is to see: ticks and gaps, as on the
   *   wire and in order; and all else that the server said
   */
  receive(data) {
    return this.take(decode(data));
  }

  /** The same, of messages that are decoded already. */
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
      // It answers one by one, in order, but knows nothing of ids.
      notice.id = this.#asked.keys().next().value;
    }
    const asked = this.#asked.get(notice.id) ?? [];
    this.#asked.delete(notice.id);
    if (notice.id === this.#epochAsked) this.#epochAsked = 0;
    if (notice.T === "subscription") this.#takeSubscription(notice, asked);
  }

  #takeSubscription(notice, asked) {
    const held = new Coverage(this.#entries());
    // Not what is listed: after a cut that is only what has been asked for again so far.
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
        // Where it is not said, nothing was published yet.
        this.books.place(...entry, notice.epoch, 0);
      }
    }
  }

  #entries() {
    return Array.from(this.#wishes.values(), ({ entry }) => entry);
  }

  // -- what to say: each returns `{id, message}`, the message as a map

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

  /** The message that ends subscriptions. */
  unsubscribe(channels) {
    const entries = entriesOf(channels);
    return this.#ask(unsubscribe(entries), entries.map((entry) => ({ entry, wish: null })));
  }

  /** Any other message. */
  ask(fields) {
    return this.#ask(fields, []);
  }

  /** The message that asks for the epoch, where a numbering has begun: one at a time, or null. */
  askEpoch() {
    if (!this.books.lacksEpoch || this.#epochAsked || !this.extended) return null;
    this.books.lacksEpoch = false;
    const question = this.#ask({ action: "list" }, []);
    this.#epochAsked = question.id;
    return question;
  }

  /**
   * After a reconnect: the messages that ask for all that was held, from where it stood. Each is to
   * be sent when the one before has been answered.
   *
   * @param {number} awayMs how long the cut was
   */
  subscribeAgain(awayMs = 0) {
    if (this.extended) this.books.insistOnEpochs();
    else this.books.resumeUnasked();
    const size = (fields) => encodedSize(fields, this.encoding);
    const comeBack = new ComeBack(this.extended ? this.books : null, size, MESSAGE_BYTES, awayMs);
    const messages = [...comeBack.messages(this.#wishes.values())];
    return messages.map((fields) => this.#ask(fields, []));
  }

  /** The bytes of a message, in the encoding of this connection. */
  encode(message) {
    return encode(message, this.encoding);
  }

  /** Give a message its `id`, and note what its success will change. */
  #ask(fields, changes) {
    const id = ++this.#lastId;
    this.#asked.set(id, changes);
    return { id, message: { ...fields, id } };
  }
}

function barChannel({ tf }) {
  return tf === undefined ? "bars" : `bars:${tf}`;
}
