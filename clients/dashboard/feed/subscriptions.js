/**
 * Subscriptions, and which streams they cover. One is a pair of a channel and an entry: a symbol, or
 * a prefix that ends in `*`.
 *
 * @typedef {[channel: string, pattern: string]} Subscription
 */

/** @param {string} pattern */
export const isWildcard = (pattern) => pattern.endsWith("*");

/** The key of a subscription in a map. */
export const keyOf = (channel, pattern) => `${channel} ${pattern}`;

/** @param {Record<string, string[]>} channels entries by channel, as in a message */
export function entriesOf(channels) {
  return Object.entries(channels).flatMap(([channel, patterns]) =>
    patterns.map((pattern) => [channel, pattern]),
  );
}

/** @param {Iterable<Subscription>} entries */
export function byChannel(entries) {
  const channels = {};
  for (const [channel, pattern] of entries) (channels[channel] ??= []).push(pattern);
  return channels;
}

/** Tells which streams a set of subscriptions covers, even if there are many. */
export class Coverage {
  #named = new Set();
  #prefixes = new Map();

  /** @param {Iterable<Subscription>} entries */
  constructor(entries) {
    for (const [channel, pattern] of entries) {
      if (!isWildcard(pattern)) this.#named.add(keyOf(channel, pattern));
      else if (!this.#prefixes.has(channel)) this.#prefixes.set(channel, [pattern.slice(0, -1)]);
      else this.#prefixes.get(channel).push(pattern.slice(0, -1));
    }
  }

  covers(channel, symbol) {
    if (this.#named.has(keyOf(channel, symbol))) return true;
    return this.#prefixes.get(channel)?.some((prefix) => symbol.startsWith(prefix)) ?? false;
  }
}
