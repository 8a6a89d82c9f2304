/**
 * The client side of the protocol, without I/O: frames in, ticks, gaps and notices out; requests in, messages
 * out. The counterpart of `tickcast/client/state.py`.
 */

import { SequenceAccounts } from "./accounts.js";
import {
  Coverage,
  ResumePlanner,
  isWildcard,
  keyOf,
  mergedOptions,
  subscribe,
  subscriptionsOf,
  unsubscribe,
} from "./resume.js";
import { decode, encode, encodedSize } from "./wire.js";

/** Servers accept messages of 64 KiB; the margin is for the `id` and other small fields. */
const MESSAGE_MAX_BYTES = 60_000;
const CHANNELS = { t: "trades", q: "quotes" };
const TEMPORARY = new Set([429, 500, 503]);

/** The server replied with an error. */
export class Refused extends Error {
  constructor(notice) {
    super(`the server refused: ${notice.code} ${notice.msg}`);
    this.name = "Refused";
    this.code = notice.code;
  }

  /** Whether the same request may succeed later. */
  get isTemporary() {
    return TEMPORARY.has(this.code);
  }
}

/** State that a client needs to interpret messages and to resume after a disconnection. */
export class ClientState {
  accounts = new SequenceAccounts();
  /** Whether the server is believed to know the extensions of this protocol. */
  extended = true;
  /** The reconnect delay that the server requested before it shut down, or 0. */
  retryMs = 0;
  /** The subscriptions with their options, by key. */
  #requested = new Map();
  /** What a successful reply changes, by the id of the request. Without options, a subscription ends. */
  #pending = new Map();
  #epochRequest = 0;
  #lastId = 0;

  /** @param {"json"|"msgpack"} encoding of the next connection; may be changed at any time */
  constructor(encoding = "json") {
    this.encoding = encoding;
  }

  /** Begin a new connection, on which the server accepted this subprotocol; "" means none. */
  beginConnection(subprotocol) {
    this.extended = subprotocol !== "";
    this.retryMs = 0;
    this.#pending.clear();
    this.#epochRequest = 0;
  }

  // -- incoming messages

  /**
   * Process one frame. Throws an error if it is not valid.
   *
   * @param {string|ArrayBuffer} frame
   * @returns {{items: object[], notices: object[]}} ticks and gaps for the page, as on the wire and in order;
   *   and all other messages of the server
   */
  receiveFrame(frame) {
    const items = [];
    const notices = [];
    for (const message of decode(frame)) {
      const channel = CHANNELS[message.T] ?? (message.T === "b" ? barChannel(message) : undefined);
      if (channel) {
        this.accounts.addTick(channel, message, items);
      } else {
        notices.push(message);
        this.#processNotice(message, items);
      }
    }
    return { items, notices };
  }

  #processNotice(notice, items) {
    if (notice.T === "gap" || notice.T === "skipped") this.accounts.addNotice(notice, items);
    else if (notice.T === "shutdown") this.retryMs = notice.retry_ms;
    else if (notice.T === "subscription" || notice.T === "error") this.#processReply(notice);
  }

  #processReply(notice) {
    if (notice.id === undefined && !this.extended && this.#pending.size) {
      // A server without extensions replies in order, but without ids.
      notice.id = this.#pending.keys().next().value;
    }
    const changes = this.#pending.get(notice.id) ?? [];
    this.#pending.delete(notice.id);
    if (notice.id === this.#epochRequest) this.#epochRequest = 0;
    if (notice.T === "subscription") this.#changeSubscriptions(notice, changes);
  }

  #changeSubscriptions({ epoch, positions }, changes) {
    const coveredBefore = new Coverage(this.#subscriptions());
    // The list in the reply can't be used: after a disconnection it names only what is restored so far.
    for (const { subscription, options } of changes) {
      const key = keyOf(...subscription);
      const earlier = this.#requested.get(key)?.options;
      if (!options) this.#requested.delete(key);
      else this.#requested.set(key, { subscription, options: earlier ? mergedOptions(options, earlier) : options });
    }
    this.accounts.endRunsOutside(this.#subscriptions());
    if (epoch === undefined) return;
    this.accounts.setEpoch(epoch);
    if (positions === undefined) return;
    this.accounts.setPositions(positions);
    for (const { subscription, options } of changes) {
      if (!options || isWildcard(subscription[1]) || options.start !== undefined) continue;
      if (!coveredBefore.covers(...subscription) && this.accounts.account(...subscription).seq === null) {
        // A stream without a position has no published ticks yet.
        this.accounts.setPosition(...subscription, epoch, 0);
      }
    }
  }

  #subscriptions() {
    return Array.from(this.#requested.values(), ({ subscription }) => subscription);
  }

  // -- outgoing messages: each method returns `{id, message}`, the message as a map

  /**
   * The message that adds subscriptions.
   *
   * @param {Record<string, string[]>} channels
   * @param {import("./resume.js").RequestedOptions} options
   * @param {{snapshot?: boolean}} [extra]
   */
  subscribe(channels, options, { snapshot } = {}) {
    const subscriptions = subscriptionsOf(channels);
    const extra = snapshot ? { snapshot: true } : {};
    if (this.extended) extra.positions = true;
    const changes = subscriptions.map((subscription) => ({ subscription, options }));
    return this.request(subscribe(subscriptions, options, extra), changes);
  }

  /** The message that ends subscriptions. */
  unsubscribe(channels) {
    const subscriptions = subscriptionsOf(channels);
    return this.request(unsubscribe(subscriptions), subscriptions.map((subscription) => ({ subscription })));
  }

  /** Whether a numbering has begun whose epoch is unknown and hasn't been requested. */
  get needsEpoch() {
    return this.accounts.epochNeeded && !this.#epochRequest && this.extended;
  }

  /** A request for the epoch if it is needed, or null; only one may be pending. */
  requestEpoch() {
    if (!this.needsEpoch) return null;
    this.accounts.epochNeeded = false;
    const request = this.request({ action: "list" });
    this.#epochRequest = request.id;
    return request;
  }

  /**
   * The messages that resume all subscriptions from their positions. Send each after the reply to the one
   * before.
   *
   * @param {number} [cutMs] how long the connection was cut
   */
  restore(cutMs = 0) {
    if (this.extended) this.accounts.confirmEpochs();
    else this.accounts.markUnresumed();
    const sizeOf = (fields) => encodedSize(fields, this.encoding);
    const planner = new ResumePlanner(this.extended ? this.accounts : null, sizeOf, MESSAGE_MAX_BYTES, cutMs);
    return [...planner.messages(this.#requested.values())].map((fields) => this.request(fields));
  }

  /** Encode a message in the encoding of this connection. */
  encode(message) {
    return encode(message, this.encoding);
  }

  /** Give a message its `id`, and remember what to change if it succeeds. */
  request(fields, changes = []) {
    const id = ++this.#lastId;
    this.#pending.set(id, changes);
    return { id, message: { ...fields, id } };
  }
}

function barChannel({ tf }) {
  return tf === undefined ? "bars" : `bars:${tf}`;
}
