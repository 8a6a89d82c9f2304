/**
 * What to say after a cut, so that every stream goes on where it was. The twin of
 * `clients/comeback.py`.
 *
 * Everything is asked for again: each subscription with its options, and with the positions of the
 * streams that have one. Servers take messages of a bounded size, so it may take several.
 *
 * @typedef {object} Wish how a subscription was asked for; undefined is what was not said
 * @property {number} [conflate_ms]
 * @property {"conflate"|"skip"|"close"} [slow]
 * @property {string|number} [start]
 * @property {number} [resume_ms] after a longer cut, the latest tick is wanted instead of all that
 *   were missed. Only here: the Python client has no such thing
 */

import { byChannel, isWildcard } from "./subscriptions.js";

const SYMBOL_MAX = 32;

/** What holds when one wish is said of a subscription that is held with another: its past is over. */
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

/** A message that ends subscriptions. */
export function unsubscribe(entries) {
  return { action: "unsubscribe", ...byChannel(entries) };
}

/**
 * Finds the messages that bring back all that was held.
 *
 * What is narrow comes first. A wildcard's `"*": 0` would bring the whole past of a stream that is
 * named besides, and wanted from a later point on.
 */
export class ComeBack {
  #books;
  #fits;
  #awayMs;
  #asked = [];

  /**
   * @param {import("./books.js").Books|null} books null if the server would not know positions
   * @param {(fields: object) => boolean} fits whether a message is small enough
   * @param {number} [awayMs] how long the cut was
   */
  constructor(books, fits, awayMs = 0) {
    this.#books = books;
    this.#fits = fits;
    this.#awayMs = awayMs;
  }

  /**
   * What to say, in this order, each when the one before is answered.
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
    const { message, known } = this.#askFor(entries, wish);
    if (this.#fits(message)) {
      this.#asked.push(...entries);
      yield message;
    } else if (entries.length > 1) {
      const half = Math.floor(entries.length / 2);
      yield* this.#bringBack(entries.slice(0, half), wish);
      yield* this.#bringBack(entries.slice(half), wish);
    } else {
      yield* this.#bringBackInParts(entries[0], wish, known);
    }
  }

  /**
   * A wildcard over so many streams that their positions do not fit: prefix by prefix. The parts are
   * held only until the whole is, which then covers the same streams.
   */
  *#bringBackInParts(whole, wish, known) {
    const patterns = [...new Set(known.map((book) => partWith(book.symbol, whole[1])))].sort();
    const parts = patterns.map((pattern) => [whole[0], pattern]);
    for (const part of parts) yield* this.#bringBack([part], wish);
    yield* this.#bringBack([whole], wish);
    yield unsubscribe(parts);
  }

  #askFor(entries, wish) {
    const known = [];
    if (!this.#books) return { message: subscribe(entries, { ...wish, start: undefined }), known };
    if (this.#awayMs > (wish.resume_ms ?? Infinity)) {
      for (const book of this.#books.positioned(entries, this.#asked)) book.unasked = true;
      return { message: subscribe(entries, { ...wish, start: undefined }, { snapshot: true }), known };
    }
    known.push(...this.#books.positioned(entries, this.#asked));
    const resume = resumeValue(known);
    const wildcards = entries.filter(([, pattern]) => isWildcard(pattern));
    if (wildcards.length && wish.start === undefined) {
      // Streams that are not known have appeared since: they are due from their first tick.
      const zeros = { epoch: "" };
      for (const [channel, pattern] of wildcards) (zeros[channel] ??= {})[pattern] = 0;
      resume.push(zeros);
    }
    return { message: subscribe(entries, wish, { resume }), known };
  }
}

/** The part of a wildcard that a symbol is in: by its next character, if it has one. */
function partWith(symbol, pattern) {
  const size = pattern.length;
  return symbol.length < size ? symbol : `${symbol.slice(0, size)}*`;
}

/** Positions, one map for each epoch. An empty epoch fits nothing: the server tells of a gap. */
function resumeValue(known) {
  const maps = new Map();
  for (const { epoch, channel, symbol, seq } of known) {
    if (!maps.has(epoch)) maps.set(epoch, { epoch });
    (maps.get(epoch)[channel] ??= {})[symbol] = seq;
  }
  return [...maps.values()];
}
