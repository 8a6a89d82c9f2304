/**
 * What to send after a reconnect, so that every stream resumes where it was. The counterpart of
 * `tickcast/client/resume.py`.
 *
 * Everything is requested again: each subscription with its options, and with the positions of the
 * streams that have one. Servers accept messages of a bounded size, so it may take several.
 *
 * @typedef {object} Wish the options of a subscription; undefined options were not set
 * @property {number} [conflate_ms]
 * @property {"conflate"|"skip"|"close"} [slow]
 * @property {string|number} [start]
 * @property {number} [resume_ms] after a longer interruption, the latest tick is sent instead of all
 *   that were missed. The Python client has no such option
 */

import { byChannel, isWildcard } from "./subscriptions.js";

const SYMBOL_MAX = 32;

/** The options that apply after a subscription is repeated with other ones: its past is over. */
export function over(wish, held) {
  return {
    conflate_ms: wish.conflate_ms ?? held.conflate_ms,
    slow: wish.slow ?? held.slow,
    start: held.start,
    resume_ms: wish.resume_ms ?? held.resume_ms,
  };
}

/** A message that adds subscriptions. */
export function subscribe(entries, wish, options) {
  const said = { conflate_ms: wish.conflate_ms, slow: wish.slow, start: wish.start };
  for (const name of Object.keys(said)) if (said[name] === undefined) delete said[name];
  return { action: "subscribe", ...byChannel(entries), ...said, ...options };
}

/** A message that removes subscriptions. */
export function unsubscribe(entries) {
  return { action: "unsubscribe", ...byChannel(entries) };
}

/**
 * Builds the messages that restore all subscriptions.
 *
 * Narrow entries come first. A wildcard's `"*": 0` would request the whole past of a stream that is
 * also named, with a later starting point.
 *
 * Positions that do not fit into one message go into as few as possible, because servers limit the
 * messages of a client and charge for each by the number of its entries.
 */
export class ComeBack {
  #books;
  #size;
  #most;
  #awayMs;
  #asked = [];

  /**
   * @param {import("./books.js").Books|null} books null if the server would not understand positions
   * @param {(fields: object) => number} size returns the size of a message on the wire, in bytes
   * @param {number} most the maximum size of one message
   * @param {number} [awayMs] how long the connection was down
   */
  constructor(books, size, most, awayMs = 0) {
    this.#books = books;
    this.#size = size;
    this.#most = most;
    this.#awayMs = awayMs;
  }

  /**
   * The messages to send, in this order, each after the previous one was answered.
   *
   * @param {Iterable<{entry: import("./subscriptions.js").Subscription, wish: Wish}>} wishes
   */
  *messages(wishes) {
    const rows = Array.from(wishes, ({ entry, wish }) => {
      const width = isWildcard(entry[1]) ? -entry[1].length : -SYMBOL_MAX - 2;
      return { entry, wish, width, key: JSON.stringify(over({}, wish)) };
    });
    rows.sort((a, b) => a.width - b.width || (a.key < b.key ? -1 : Number(a.key > b.key)));
    for (let at = 0, next; at < rows.length; at = next) {
      for (next = at; rows[next]?.key === rows[at].key; ) next += 1;
      yield* this.#bringBack(rows.slice(at, next).map((row) => row.entry), rows[at].wish);
    }
  }

  *#bringBack(entries, wish) {
    const message = this.#askFor(entries, wish, this.#known(entries));
    if (this.#size(message) <= this.#most) {
      this.#asked.push(...entries);
      yield message;
      return;
    }
    const parts = [];
    let together = [];
    let known = [];
    let size = 0;
    for (const { entry, books } of this.#split(entries, wish, parts)) {
      const more = this.#size(this.#askFor([entry], wish, books));
      if (together.length && size + more > this.#most) {
        // The sum of the separate sizes is more than the combined size.
        size = this.#size(this.#askFor([...together, entry], wish, [...known, ...books])) - more;
        if (size + more > this.#most) {
          yield this.#askFor(together, wish, known);
          [together, known, size] = [[], [], 0];
        }
      }
      together.push(entry);
      known.push(...books);
      size += more;
    }
    yield this.#askFor(together, wish, known);
    yield* this.#unsubscribeFrom(parts);
  }

  *#unsubscribeFrom(parts) {
    const message = unsubscribe(parts);
    if (parts.length > 1 && this.#size(message) > this.#most) {
      const half = Math.floor(parts.length / 2);
      yield* this.#unsubscribeFrom(parts.slice(0, half));
      yield* this.#unsubscribeFrom(parts.slice(half));
    } else if (parts.length) {
      yield message;
    }
  }

  /**
   * Entries with the positions of their streams, each small enough for one message.
   *
   * A wildcard over too many streams comes after parts of it, which are added to `parts`. The client
   * holds the parts only until it holds the whole wildcard, which then covers the same streams.
   */
  *#split(entries, wish, parts) {
    for (const entry of entries) {
      let books = this.#known([entry]);
      if (isWildcard(entry[1]) && !this.#fits(entry, wish, books)) {
        for (const part of this.#partsOf(entry, wish, books)) {
          parts.push(part.entry);
          yield part;
        }
        books = [];
      }
      this.#asked.push(entry);
      yield { entry, books };
    }
  }

  *#partsOf([channel, pattern], wish, known) {
    const byPart = new Map();
    for (const book of known) {
      const part = partWith(book.symbol, pattern);
      if (!byPart.has(part)) byPart.set(part, []);
      byPart.get(part).push(book);
    }
    for (const part of [...byPart.keys()].sort()) {
      const entry = [channel, part];
      const books = byPart.get(part);
      if (isWildcard(part) && !this.#fits(entry, wish, books)) yield* this.#partsOf(entry, wish, books);
      else yield { entry, books };
    }
  }

  #fits(entry, wish, known) {
    return this.#size(this.#askFor([entry], wish, known)) <= this.#most;
  }

  #known(entries) {
    return this.#books?.positioned(entries, this.#asked) ?? [];
  }

  #askFor(entries, wish, known) {
    if (!this.#books) return subscribe(entries, { ...wish, start: undefined });
    if (this.#awayMs > (wish.resume_ms ?? Infinity)) {
      for (const book of known) book.unasked = true;
      return subscribe(entries, { ...wish, start: undefined }, { snapshot: true });
    }
    const resume = resumeValue(known);
    const wildcards = entries.filter(([, pattern]) => isWildcard(pattern));
    if (wildcards.length && wish.start === undefined) {
      // Unknown streams have appeared since, so they are wanted from their first tick.
      const zeros = { epoch: "" };
      for (const [channel, pattern] of wildcards) (zeros[channel] ??= {})[pattern] = 0;
      resume.push(zeros);
    }
    return subscribe(entries, wish, { resume });
  }
}

/** The part of a wildcard that contains a symbol: by its next character, if it has one. */
function partWith(symbol, pattern) {
  const size = pattern.length;
  return symbol.length < size ? symbol : `${symbol.slice(0, size)}*`;
}

/** Positions, one map for each epoch. An empty epoch matches nothing, so the server reports a gap. */
function resumeValue(known) {
  const maps = new Map();
  for (const { epoch, channel, symbol, seq } of known) {
    if (!maps.has(epoch)) maps.set(epoch, { epoch });
    (maps.get(epoch)[channel] ??= {})[symbol] = seq;
  }
  return [...maps.values()];
}
