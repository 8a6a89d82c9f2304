/**
 * A client's books: what it got of each stream, what it did not, and where it stands. The twin of
 * `clients/books.py`; `tests/clients/vectors.json` holds both to the same.
 *
 * The rule they hold is section 5 of the protocol: each published tick is delivered, merged into a
 * later one, skipped, or in a gap. What is none of these is missing, and a correct server has none.
 *
 * @typedef {object} Gap ticks of a stream that will not come
 * @property {"gap"} T
 * @property {string} ch the channel
 * @property {string} S the symbol
 * @property {number|null} from the first of them; null where it is not known
 * @property {number|null} to the last of them; both are null where the numbering has restarted
 * @property {"retention"|"epoch"|"broker"|"skipped"|"missing"} reason as the server says it;
 *   `skipped`: this page was too slow; `missing`: nobody has said a word, which would be a fault
 */

import { Coverage } from "./subscriptions.js";

/** Streams that are remembered; beyond it those go first that were first heard of. */
const STREAMS_MAX = 100_000;
const COUNTED = ["delivered", "merged", "skipped", "gapped", "missing", "repeated", "gaps", "restarts", "snapshots"];

/** One stream. `seq` is the last number accounted for; null while there is none to go on from. */
export class Book {
  epoch = "";
  /** Whether the epoch was told; else it is the one that the feed was in lately. */
  isSure = false;
  seq = null;
  delivered = 0;
  merged = 0;
  skipped = 0;
  gapped = 0;
  /** Ticks that are none of these. */
  missing = 0;
  /** Ticks that came a second time. */
  repeated = 0;
  gaps = 0;
  restarts = 0;
  snapshots = 0;
  /** The numbering has, and nothing of the new one has come yet. */
  restarted = false;
  /** After a cut, the server was not asked for what was published meanwhile. */
  unasked = false;
  #base = 0;
  #closed = 0;

  constructor(channel, symbol) {
    this.channel = channel;
    this.symbol = symbol;
  }

  /** How many numbers `seq` has gone through, over all runs. */
  get published() {
    return this.#closed + (this.seq === null ? 0 : this.seq - this.#base);
  }

  /** Begin a run with the number after this one. */
  beginAfter(seq) {
    this.endRun();
    this.#base = this.seq = seq;
  }

  /** There is nothing to go on from any more. */
  endRun() {
    this.#closed = this.published;
    this.seq = null;
    this.restarted = this.unasked = false;
  }

  /** Enter a tick; adds to `seen` what the page is to see: ticks and gaps. */
  take(tick, seen) {
    if (tick.seq === undefined) {
      this.#takeUnnumbered(seen);
      seen.push(tick);
    } else if (!tick.snap) {
      this.#takeNumbered(tick, seen);
    } else {
      this.snapshots += 1;
      if (this.#begins) this.beginAfter(tick.seq);
      if (tick.seq >= this.seq) seen.push(tick);
    }
  }

  /** Enter a `skipped` notice. */
  takeSkipped(from, to, seen) {
    const first = this.#cover(from, to, seen);
    this.skipped += to - first + 1;
    if (first <= to) seen.push(this.#gap(first, to, "skipped"));
  }

  /** Enter a `gap` notice. */
  takeGap(from, to, reason, seen) {
    this.gaps += 1;
    if (reason === "epoch") {
      this.restarts += 1;
      this.beginAfter(0);
      this.epoch = "";
      this.isSure = false;
      this.restarted = true;
      seen.push(this.#gap(null, null, reason));
      return;
    }
    if (from === null && to !== null && this.#begins) this.beginAfter(to);
    if (from === null || to === null) {
      seen.push(this.#gap(from, to, reason));
      return;
    }
    const first = this.#cover(from, to, seen);
    this.gapped += to - first + 1;
    if (first <= to) seen.push(this.#gap(first, to, reason));
  }

  // After a restart a stream goes on with 1, or with the tick after a snapshot. A slow client may
  // not have got that one.
  get #begins() {
    return this.seq === null || this.restarted;
  }

  #takeUnnumbered(seen) {
    this.delivered += 1;
    if (!this.unasked) return;
    this.unasked = false;
    this.gaps += 1;
    seen.push(this.#gap(null, null, "retention"));
  }

  #takeNumbered(tick, seen) {
    const { seq } = tick;
    const first = seq - (tick.cf ?? 0);
    // Live ticks only go up: this is another numbering.
    if (this.unasked && seq <= (this.seq ?? 0)) this.takeGap(null, null, "epoch", seen);
    if (this.#begins) this.beginAfter(first - 1);
    let position = this.seq;
    if (seq <= position) {
      this.repeated += 1;
      return;
    }
    if (first > position + 1) {
      seen.push(this.#lose(position + 1, first - 1));
      position = first - 1;
    }
    this.repeated += position - first + 1;
    this.delivered += 1;
    this.merged += seq - position - 1;
    this.#goOnTo(seq);
    seen.push(tick);
  }

  #goOnTo(seq) {
    this.seq = seq;
    this.unasked = false;
  }

  /** Nobody has told of it, unless nobody was asked. */
  #lose(from, to) {
    const count = to - from + 1;
    if (!this.unasked) {
      this.missing += count;
      return this.#gap(from, to, "missing");
    }
    this.gapped += count;
    this.gaps += 1;
    return this.#gap(from, to, "retention");
  }

  #gap(from, to, reason) {
    return { T: "gap", ch: this.channel, S: this.symbol, from, to, reason };
  }

  /** Go on behind a notice; returns what is new of it, behind its end where nothing is. */
  #cover(from, to, seen) {
    if (this.#begins) this.beginAfter(from - 1);
    const position = this.seq;
    if (from > position + 1) seen.push(this.#lose(position + 1, from - 1));
    const first = Math.min(Math.max(from, position + 1), to + 1);
    this.repeated += first - from;
    this.#goOnTo(Math.max(position, to));
    return first;
  }
}

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
    return [...this.#books].filter(
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
