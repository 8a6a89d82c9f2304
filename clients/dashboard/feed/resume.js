/**
 * Subscriptions, and the messages that restore them after a disconnection, so that every stream resumes where it was.
 * The counterpart of `ResumePlanner` in `tickcast/client/state.py`.
 *
 * @typedef {[channel: string, pattern: string]} Subscription the pattern is a symbol, or a prefix that ends
 *   in `*`
 *
 * @typedef {object} RequestedOptions the options of a subscription; undefined options were not set
 * @property {number} [conflate_ms]
 * @property {"conflate"|"skip"|"close"} [slow]
 * @property {string|number} [start]
 * @property {number} [resume_ms] after a longer cut, the server sends the latest tick instead of all that
 *   were missed. The Python client has no such option
 */

const SYMBOL_MAX = 32;

/** @param {string} pattern */
export const isWildcard = (pattern) => pattern.endsWith("*");

/** The key of a subscription in a map. */
export const keyOf = (channel, pattern) => `${channel} ${pattern}`;

/** @param {Record<string, string[]>} channels patterns by channel, as in a message */
export function subscriptionsOf(channels) {
  return Object.entries(channels).flatMap(([channel, patterns]) => patterns.map((pattern) => [channel, pattern]));
}

/** Finds which streams are covered by a set of subscriptions, even a large one. */
export class Coverage {
  #named = new Set();
  #prefixes = new Map();

  /** @param {Iterable<Subscription>} subscriptions */
  constructor(subscriptions) {
    for (const [channel, pattern] of subscriptions) {
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

/** Merge options into those of an existing subscription, keeping its start. */
export function mergedOptions(options, earlier) {
  return {
    conflate_ms: options.conflate_ms ?? earlier.conflate_ms,
    slow: options.slow ?? earlier.slow,
    start: earlier.start,
    resume_ms: options.resume_ms ?? earlier.resume_ms,
  };
}

/** A message that adds subscriptions. */
export function subscribe(subscriptions, { conflate_ms, slow, start }, extra) {
  const options = Object.entries({ conflate_ms, slow, start }).filter(([, value]) => value !== undefined);
  return { action: "subscribe", ...byChannel(subscriptions), ...Object.fromEntries(options), ...extra };
}

/** A message that ends subscriptions. */
export function unsubscribe(subscriptions) {
  return { action: "unsubscribe", ...byChannel(subscriptions) };
}

function byChannel(subscriptions) {
  const channels = {};
  for (const [channel, pattern] of subscriptions) (channels[channel] ??= []).push(pattern);
  return channels;
}

/**
 * Builds the messages that restore all subscriptions, each with its options and positions.
 *
 * Narrow subscriptions come first. Otherwise a wildcard's `"*": 0` would bring the whole history of a stream
 * that is also named, and wanted only from a later point on.
 *
 * Positions that do not fit into one message are spread over as few as possible, because servers limit a
 * client's messages and charge each by what it names.
 */
export class ResumePlanner {
  #accounts;
  #sizeOf;
  #maxBytes;
  #cutMs;
  /** Subscriptions that earlier messages have restored, with their streams' positions. */
  #restored = [];

  /**
   * @param {import("./accounts.js").SequenceAccounts|null} accounts null if the server does not understand
   *   positions
   * @param {(fields: object) => number} sizeOf returns the size of a message on the wire, in bytes
   * @param {number} maxBytes the maximum size of a message
   * @param {number} [cutMs] how long the connection was cut
   */
  constructor(accounts, sizeOf, maxBytes, cutMs = 0) {
    this.#accounts = accounts;
    this.#sizeOf = sizeOf;
    this.#maxBytes = maxBytes;
    this.#cutMs = cutMs;
  }

  /**
   * The messages in order; send each after the reply to the one before.
   *
   * @param {Iterable<{subscription: Subscription, options: RequestedOptions}>} requested
   */
  *messages(requested) {
    const rows = Array.from(requested, ({ subscription, options }) => {
      const [, pattern] = subscription;
      const breadth = isWildcard(pattern) ? -pattern.length : -SYMBOL_MAX - 2;
      return { subscription, options, breadth, key: JSON.stringify(mergedOptions({}, options)) };
    });
    rows.sort((a, b) => a.breadth - b.breadth || (a.key < b.key ? -1 : Number(a.key > b.key)));
    for (let at = 0, next; at < rows.length; at = next) {
      for (next = at; rows[next]?.key === rows[at].key; ) next += 1;
      yield* this.#restoreGroup(rows.slice(at, next).map((row) => row.subscription), rows[at].options);
    }
  }

  *#restoreGroup(group, options) {
    const message = this.#message(group, options, this.#resumable(group));
    if (this.#sizeOf(message) <= this.#maxBytes) {
      this.#restored.push(...group);
      yield message;
      return;
    }
    const parts = [];
    let [joined, accounts, size] = [[], [], 0];
    for (const { subscription, accounts: more } of this.#split(group, options, parts)) {
      const sizeAlone = this.#sizeOf(this.#message([subscription], options, more));
      if (joined.length && size + sizeAlone > this.#maxBytes) {
        // The sum overestimates the size of the joint message; measure it before giving up.
        const joint = this.#message([...joined, subscription], options, [...accounts, ...more]);
        size = this.#sizeOf(joint) - sizeAlone;
        if (size + sizeAlone > this.#maxBytes) {
          yield this.#message(joined, options, accounts);
          [joined, accounts, size] = [[], [], 0];
        }
      }
      joined.push(subscription);
      accounts.push(...more);
      size += sizeAlone;
    }
    yield this.#message(joined, options, accounts);
    yield* this.#unsubscribeFrom(parts);
  }

  /**
   * Subscriptions with the accounts of their streams, each small enough for one message.
   *
   * A wildcard with too many streams comes after its parts, which are added to `parts`. They are needed only
   * until the whole wildcard is subscribed, because it covers the same streams.
   */
  *#split(group, options, parts) {
    for (const subscription of group) {
      let accounts = this.#resumable([subscription]);
      if (isWildcard(subscription[1]) && !this.#fits(subscription, options, accounts)) {
        for (const part of this.#partsOf(subscription, options, accounts)) {
          parts.push(part.subscription);
          yield part;
        }
        accounts = [];
      }
      this.#restored.push(subscription);
      yield { subscription, accounts };
    }
  }

  *#partsOf([channel, whole], options, accounts) {
    // A part covers the symbols that also have the next character in common, if any.
    const patternOf = ({ symbol }) =>
      symbol.length < whole.length ? symbol : `${symbol.slice(0, whole.length)}*`;
    const byPart = new Map();
    for (const account of accounts) {
      const pattern = patternOf(account);
      if (!byPart.has(pattern)) byPart.set(pattern, []);
      byPart.get(pattern).push(account);
    }
    for (const pattern of [...byPart.keys()].sort()) {
      const subscription = [channel, pattern];
      const some = byPart.get(pattern);
      if (isWildcard(pattern) && !this.#fits(subscription, options, some)) {
        yield* this.#partsOf(subscription, options, some);
      } else {
        yield { subscription, accounts: some };
      }
    }
  }

  *#unsubscribeFrom(parts) {
    const message = unsubscribe(parts);
    if (parts.length > 1 && this.#sizeOf(message) > this.#maxBytes) {
      const half = Math.floor(parts.length / 2);
      yield* this.#unsubscribeFrom(parts.slice(0, half));
      yield* this.#unsubscribeFrom(parts.slice(half));
    } else if (parts.length) {
      yield message;
    }
  }

  #fits(subscription, options, accounts) {
    return this.#sizeOf(this.#message([subscription], options, accounts)) <= this.#maxBytes;
  }

  #resumable(subscriptions) {
    return this.#accounts?.resumable(subscriptions, this.#restored) ?? [];
  }

  #message(subscriptions, options, accounts) {
    if (!this.#accounts) return subscribe(subscriptions, { ...options, start: undefined });
    if (this.#cutMs > (options.resume_ms ?? Infinity)) {
      for (const account of accounts) account.unresumed = true;
      return subscribe(subscriptions, { ...options, start: undefined }, { snapshot: true });
    }
    // One map per epoch. An empty epoch matches none, so the server reports a gap.
    const byEpoch = new Map();
    for (const { epoch, channel, symbol, seq } of accounts) {
      if (!byEpoch.has(epoch)) byEpoch.set(epoch, { epoch });
      (byEpoch.get(epoch)[channel] ??= {})[symbol] = seq;
    }
    const resume = [...byEpoch.values()];
    const wildcards = subscriptions.filter(([, pattern]) => isWildcard(pattern));
    if (wildcards.length && options.start === undefined) {
      // Unknown streams have appeared since the disconnection: request them from their first tick.
      const zeros = { epoch: "" };
      for (const [channel, pattern] of wildcards) (zeros[channel] ??= {})[pattern] = 0;
      resume.push(zeros);
    }
    return subscribe(subscriptions, options, { resume });
  }
}
