/**
 * The accounts of one stream: what became of each of its numbers.
 *
 * @typedef {object} Gap ticks of a stream that will not come
 * @property {"gap"} T
 * @property {string} ch the channel
 * @property {string} S the symbol
 * @property {number|null} from the first of them; null if unknown
 * @property {number|null} to the last of them; both are null if the numbering restarted
 * @property {"retention"|"epoch"|"broker"|"skipped"|"missing"} reason as the server gives it;
 *   `skipped`: this page was too slow; `missing`: the server gave no notice, which would be a fault
 */

/** One stream. `seq` is the last number accounted for; null while there is none to continue from. */
export class Book {
  epoch = "";
  /** Whether the server gave the epoch; otherwise it is the feed's last known epoch. */
  isSure = false;
  seq = null;
  delivered = 0;
  merged = 0;
  skipped = 0;
  gapped = 0;
  /** Ticks that fall into none of these categories. */
  missing = 0;
  /** Ticks that arrived a second time. */
  repeated = 0;
  gaps = 0;
  restarts = 0;
  snapshots = 0;
  /** The numbering restarted, and nothing of the new one has arrived yet. */
  restarted = false;
  /** After a reconnect, the server was not asked for what was published meanwhile. */
  unasked = false;
  #base = 0;
  #closed = 0;

  constructor(channel, symbol) {
    this.channel = channel;
    this.symbol = symbol;
  }

  /** How many numbers `seq` has advanced, over all runs. */
  get published() {
    return this.#closed + (this.seq === null ? 0 : this.seq - this.#base);
  }

  /** Begin a run with the number after this one. */
  beginAfter(seq) {
    this.endRun();
    this.#base = this.seq = seq;
  }

  /** Forget the position: there is nothing left to continue from. */
  endRun() {
    this.#closed = this.published;
    this.seq = null;
    this.restarted = this.unasked = false;
  }

  /** Enter a tick; adds to `seen` the ticks and gaps to show to the page. */
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

  // After a restart, a stream continues with 1, or with the tick after a snapshot. A slow client may
  // not have received that snapshot.
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
    // Live numbers only increase, so this is another numbering.
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

  /** The server gave no notice of these ticks, unless it was not asked for them. */
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

  /** Continue after a notice; returns the part of it that is new, which is empty if nothing is. */
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
