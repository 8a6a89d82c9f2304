/**
 * A client's accounts: what it received of each stream, what it missed, and its position. The counterpart
 * of `tickcast/client/accounts.py`; `tests/clients/vectors.json` tests both with the same cases.
 *
 * They follow section 5 of the protocol: each published tick is delivered, merged into a later one,
 * skipped, or in a gap. Anything else is missing, and a correct server has no missing ticks.
 */

import { Book } from "./book.js";
import { Coverage, isWildcard } from "./subscriptions.js";

/** The number of streams to remember; beyond it, the ones seen first are dropped first. */
const STREAMS_MAX = 100_000;
const COUNTED = ["delivered", "merged", "skipped", "gapped", "missing", "repeated", "gaps", "restarts", "snapshots"];

/** The accounts of all streams of one client. */
export class Books {
  /** The feed's epoch, as far as it is known. */
  epoch = "";
  /** Whether a numbering has begun since. */
  lacksEpoch = false;
  #streamsMax;
  #byChannel = new Map();
  #books = new Set();

  constructor(streamsMax = STREAMS_MAX) {
    this.#streamsMax = streamsMax;
  }

  /** The account of a stream, created if necessary. */
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

  /** The position of a stream; an empty epoch and null if it is unknown. */
  position(channel, symbol) {
    const book = this.#byChannel.get(channel)?.get(symbol);
    return { epoch: book?.epoch ?? "", seq: book?.seq ?? null };
  }

  #forget(book) {
    this.#books.delete(book);
    this.#byChannel.get(book.channel).delete(book.symbol);
  }

  /** Enter a tick of a channel; adds to `seen` what to show to the page. */
  take(channel, tick, seen) {
    const book = this.book(channel, tick.S);
    if (!book.seq && !book.restarted && tick.seq !== undefined) this.#begin(book);
    book.take(tick, seen);
  }

  /** Enter a `skipped` or `gap` notice; adds to `seen` the gaps to show to the page. */
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
   * The server has sent the feed's epoch. Numberings that have begun since it sent another one may
   * belong to either. They are assigned to this epoch when the server sends it once more.
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

  /** Continue from the positions that the server sent in `positions`. */
  standAt(positions) {
    for (const { epoch, ...channels } of positions) {
      for (const [channel, seqs] of Object.entries(channels)) {
        for (const [symbol, seq] of Object.entries(seqs)) this.place(channel, symbol, epoch, seq);
      }
    }
  }

  /** Continue one stream from here. */
  place(channel, symbol, epoch, seq) {
    const book = this.book(channel, symbol);
    book.beginAfter(seq);
    book.epoch = epoch;
    book.isSure = true;
  }

  /** Streams that are no longer subscribed start over when they are subscribed again. */
  keepPositions(held) {
    const coverage = new Coverage(held);
    for (const book of this.#books) {
      if (book.seq !== null && !coverage.covers(book.channel, book.symbol)) book.endRun();
    }
  }

  /**
   * The client is about to send positions to the server, which will report wrong epochs. Until it
   * has, trust no other epoch: the connection may end before the server's report arrives.
   */
  insistOnEpochs() {
    for (const book of this.#books) book.isSure = book.seq !== null;
  }

  /** Continue all streams after a reconnect; what was published meanwhile will not arrive. */
  resumeUnasked() {
    for (const book of this.#books) book.unasked = true;
  }

  /** The resumable streams that some subscriptions cover and others do not. */
  positioned(held, besides = []) {
    const coverage = new Coverage(held);
    const known = new Coverage(besides);
    const isNamed = !held.some(([, pattern]) => isWildcard(pattern));
    // Avoid a scan of all streams for a few that are named.
    const candidates = isNamed
      ? held.flatMap(([channel, symbol]) => this.#byChannel.get(channel)?.get(symbol) ?? [])
      : [...this.#books];
    return candidates.filter(
      ({ seq, channel, symbol }) =>
        seq !== null && coverage.covers(channel, symbol) && !known.covers(channel, symbol),
    );
  }

  /** The sums over all streams, and whether every tick is accounted for exactly once. */
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
