/**
 * A client's books: what it got of each stream, what it did not, and where it stands. The twin of
 * `clients/books.py`; `tests/clients/vectors.json` holds both to the same.
 *
 * The rule they hold is section 5 of the protocol: each published tick is delivered, merged into a
 * later one, skipped, or in a gap. What is none of these is missing, and a correct server has none.
 */

import { Book } from "./book.js";
import { Coverage, isWildcard } from "./subscriptions.js";

/** Streams that are remembered; beyond it those go first that were first heard of. */
const STREAMS_MAX = 100_000;
const COUNTED = ["delivered", "merged", "skipped", "gapped", "missing", "repeated", "gaps", "restarts", "snapshots"];

/** The books of all streams of one client. */
export class Books {
  /** The feed's, as far as was heard. */
  epoch = "";
  /** A numbering has begun since. */
  lacksEpoch = false;
  #streamsMax;
  #byChannel = new Map();
  #books = new Set();

  constructor(streamsMax = STREAMS_MAX) {
    this.#streamsMax = streamsMax;
  }

  /** The book of a stream, a new one if need be. */
  book(channel, symbol) {
    let books = this.#byChannel.get(channel);
    if (!books) this.#byChannel.set(channel, (books = new Map()));
    let book = books.get(symbol);
    if (!book) {
      if (this.#books.size >= this.#streamsMax) this.#forget(this.#books.values().next().value);
      book = new Book(channel, symbol);
      books.set(symbol, book);
      this.#books.add(book);
    }
    return book;
  }

  /** Where a stream stands; an empty epoch and null where nothing is known. */
  position(channel, symbol) {
    const book = this.#byChannel.get(channel)?.get(symbol);
    return { epoch: book?.epoch ?? "", seq: book?.seq ?? null };
  }

  #forget(book) {
    this.#books.delete(book);
    this.#byChannel.get(book.channel).delete(book.symbol);
  }

  /** Enter a tick of a channel; adds to `seen` what the page is to see. */
  take(channel, tick, seen) {
    const book = this.book(channel, tick.S);
    if (!book.seq && !book.restarted && tick.seq !== undefined) this.#begin(book);
    book.take(tick, seen);
  }

  /** Enter a `skipped` or `gap` notice; adds to `seen` the gaps that the page is to see. */
  takeNotice(notice, seen) {
    const book = this.book(notice.ch, notice.S);
    if (book.seq === null) this.#begin(book);
    if (notice.T === "skipped") {
      book.takeSkipped(notice.from, notice.to, seen);
    } else {
      this.lacksEpoch ||= notice.reason === "epoch";
      book.takeGap(notice.from, notice.to, notice.reason, seen);
    }
  }

  #begin(book) {
    book.epoch = this.epoch;
    book.isSure = false;
    this.lacksEpoch = true;
  }

  /**
   * The server has told the feed's epoch. Numbers that have begun since it told another one may
   * belong to either. They are taken to be of this epoch when it is told once more.
   */
  nameEpoch(epoch) {
    this.epoch = epoch;
    for (const book of this.#books) {
      if (book.isSure || book.seq === null) continue;
      if (book.epoch === "" || book.epoch === epoch) {
        book.epoch = epoch;
        book.isSure = true;
      } else {
        book.epoch = "";
        this.lacksEpoch = true;
      }
    }
  }

  /** Go on from what the server has told in `positions`. */
  standAt(positions) {
    for (const { epoch, ...channels } of positions) {
      for (const [channel, seqs] of Object.entries(channels)) {
        for (const [symbol, seq] of Object.entries(seqs)) this.place(channel, symbol, epoch, seq);
      }
    }
  }

  /** Go on from here with one stream. */
  place(channel, symbol, epoch, seq) {
    const book = this.book(channel, symbol);
    book.beginAfter(seq);
    book.epoch = epoch;
    book.isSure = true;
  }

  /** Streams that are held no longer begin anew when they are subscribed again. */
  keepPositions(held) {
    const coverage = new Coverage(held);
    for (const book of this.#books) {
      if (book.seq !== null && !coverage.covers(book.channel, book.symbol)) book.endRun();
    }
  }

  /**
   * Positions are about to be told to the server, which will say where an epoch is wrong. Until it
   * does, no other is to be believed: its word may be cut off.
   */
  insistOnEpochs() {
    for (const book of this.#books) book.isSure = book.seq !== null;
  }

  /** All streams go on behind a cut, and what was published meanwhile will not come. */
  resumeUnasked() {
    for (const book of this.#books) book.unasked = true;
  }

  /** The streams under some subscriptions, but not under others, that can be resumed. */
  positioned(held, besides = []) {
    const coverage = new Coverage(held);
    const known = new Coverage(besides);
    const isNamed = !held.some(([, pattern]) => isWildcard(pattern));
    // Do not look through all streams for a few that are named.
    const candidates = isNamed
      ? held.flatMap(([channel, symbol]) => this.#byChannel.get(channel)?.get(symbol) ?? [])
      : [...this.#books];
    return candidates.filter(
      ({ seq, channel, symbol }) =>
        seq !== null && coverage.covers(channel, symbol) && !known.covers(channel, symbol),
    );
  }

  /** The sums over all streams, and whether every tick is accounted for, once. */
  totals() {
    const sums = { streams: this.#books.size, published: 0 };
    for (const name of COUNTED) sums[name] = 0;
    let balanced = true;
    for (const book of this.#books) {
      for (const name of COUNTED) sums[name] += book[name];
      sums.published += book.published;
      const told = book.delivered + book.merged + book.skipped + book.gapped;
      balanced &&= (book.seq === null && !book.published) || book.published === told;
    }
    return { ...sums, balanced: balanced && sums.repeated === 0 };
  }
}
