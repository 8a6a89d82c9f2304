/**
 * Sequence accounting: what happened to every tick of every stream, and where to resume. The counterpart of
 * `tickcast/client/accounts.py`; `tests/tickcast/client/vectors.json` tests both with the same cases.
 *
 * Section 5 of the protocol sets the rule: each published tick is delivered, merged into a later one,
 * skipped, or part of a gap. A tick that is none of these is missing, which a correct server never causes.
 *
 * @typedef {object} Gap ticks of a stream that will not arrive
 * @property {"gap"} T
 * @property {string} ch the channel
 * @property {string} S the symbol
 * @property {number|null} from the first of them; null if unknown
 * @property {number|null} to the last of them; both are null if the numbering has restarted
 * @property {"retention"|"epoch"|"broker"|"skipped"|"missing"} reason as the server gives it;
 *   `skipped`: this page was too slow; `missing`: the server gave no notice, which is a server bug
 */

import { Coverage, isWildcard } from "./resume.js";

/** Above this number of streams, the stream first seen is dropped first. */
const STREAMS_MAX = 100_000;
const COUNTS = ["delivered", "merged", "skipped", "gapped", "missing", "repeated", "gaps", "restarts", "snapshots"];

/** The accounting of one stream. Methods add the ticks and gaps for the page to `items`. */
class StreamAccount {
  epoch = "";
  /** Whether the server has confirmed that `epoch` is that of `seq`. Otherwise it is the feed's last known one. */
  confirmed = false;
  /** The last number accounted for; null if there is no position to resume from. */
  seq = null;
  delivered = 0;
  merged = 0;
  skipped = 0;
  gapped = 0;
  missing = 0;
  repeated = 0;
  gaps = 0;
  restarts = 0;
  snapshots = 0;
  /** The numbering has restarted, and no tick of the new one has arrived yet. */
  restarted = false;
  /** After a disconnection, the stream went on without a request for the ticks published meanwhile. */
  unresumed = false;
  #base = 0;
  #closed = 0;

  constructor(channel, symbol) {
    this.channel = channel;
    this.symbol = symbol;
  }

  /** How many numbers `seq` has advanced by, over all runs. */
  get published() {
    return this.#closed + (this.seq === null ? 0 : this.seq - this.#base);
  }

  /** Start a run of numbers that follow `seq`. */
  startRun(seq) {
    this.endRun();
    this.#base = this.seq = seq;
  }

  /** End the current run: there is no position to resume from. */
  endRun() {
    this.#closed = this.published;
    this.seq = null;
    this.restarted = this.unresumed = false;
  }

  addTick(tick, items) {
    const { seq } = tick;
    if (seq === undefined) {
      this.delivered += 1;
      if (this.unresumed) {
        this.unresumed = false;
        this.gaps += 1;
        items.push(this.#gap(null, null, "retention"));
      }
      items.push(tick);
      return;
    }
    if (tick.snap) {
      this.snapshots += 1;
      if (seq >= this.#positionBefore(seq + 1)) items.push(tick);
      return;
    }
    const first = seq - (tick.cf ?? 0);
    // The numbers of live ticks only increase, so this is a new numbering.
    if (this.unresumed && seq <= (this.seq ?? 0)) this.addGap(null, null, "epoch", items);
    let position = this.#positionBefore(first);
    if (seq <= position) {
      this.repeated += 1;
      return;
    }
    if (first > position + 1) {
      items.push(this.#addUnexplained(position + 1, first - 1));
      position = first - 1;
    }
    this.repeated += position - first + 1;
    this.delivered += 1;
    this.merged += seq - position - 1;
    this.#advance(seq);
    items.push(tick);
  }

  /** Record a `gap` or `skipped` notice. */
  addGap(from, to, reason, items) {
    if (reason !== "skipped") this.gaps += 1;
    if (reason === "epoch") {
      this.restarts += 1;
      this.startRun(0);
      this.epoch = "";
      this.confirmed = false;
      this.restarted = true;
      items.push(this.#gap(null, null, reason));
      return;
    }
    if (from === null || to === null) {
      if (to !== null) this.#positionBefore(to + 1);
      items.push(this.#gap(from, to, reason));
      return;
    }
    const position = this.#positionBefore(from);
    if (from > position + 1) items.push(this.#addUnexplained(position + 1, from - 1));
    // A notice may repeat numbers that were accounted for already.
    const first = Math.min(Math.max(from, position + 1), to + 1);
    this.repeated += first - from;
    this[reason === "skipped" ? "skipped" : "gapped"] += to - first + 1;
    this.#advance(Math.max(position, to));
    if (first <= to) items.push(this.#gap(first, to, reason));
  }

  /**
   * The position, after starting a run with `first` if no run has begun. After a restart, a stream continues
   * with 1 or with the tick after a snapshot, but a slow client may not have received that tick.
   */
  #positionBefore(first) {
    if (this.seq === null || this.restarted) this.startRun(first - 1);
    return this.seq;
  }

  #advance(seq) {
    this.seq = seq;
    this.unresumed = false;
  }

  /** Count ticks that no notice covers: as a gap if they could not be requested. */
  #addUnexplained(from, to) {
    const count = to - from + 1;
    if (!this.unresumed) {
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
}

/** The accounting of all streams of one client. */
export class SequenceAccounts {
  /** The feed's epoch that the server last reported. */
  epoch = "";
  /** A numbering has begun since then, so its epoch has to be requested. */
  epochNeeded = false;
  #streamsMax;
  #byChannel = new Map();
  #accounts = new Set();

  constructor(streamsMax = STREAMS_MAX) {
    this.#streamsMax = streamsMax;
  }

  /** The account of a stream, created if necessary. */
  account(channel, symbol) {
    let ofChannel = this.#byChannel.get(channel);
    if (!ofChannel) this.#byChannel.set(channel, (ofChannel = new Map()));
    let account = ofChannel.get(symbol);
    if (!account) {
      if (this.#accounts.size >= this.#streamsMax) this.#dropFirst();
      account = new StreamAccount(channel, symbol);
      ofChannel.set(symbol, account);
      this.#accounts.add(account);
    }
    return account;
  }

  #dropFirst() {
    const [first] = this.#accounts;
    this.#accounts.delete(first);
    this.#byChannel.get(first.channel).delete(first.symbol);
  }

  /** The position of a stream; an empty epoch and null if it is unknown. */
  position(channel, symbol) {
    const { epoch = "", seq = null } = this.#byChannel.get(channel)?.get(symbol) ?? {};
    return { epoch, seq };
  }

  /** Record a tick; adds to `items` the ticks and gaps for the page. */
  addTick(channel, tick, items) {
    const account = this.account(channel, tick.S);
    if (!account.seq && !account.restarted && tick.seq !== undefined) this.#assumeEpoch(account);
    account.addTick(tick, items);
  }

  /** Record a `skipped` or `gap` notice; adds to `items` the gaps for the page. */
  addNotice({ T, ch, S, from, to, reason }, items) {
    const account = this.account(ch, S);
    if (account.seq === null) this.#assumeEpoch(account);
    this.epochNeeded ||= reason === "epoch";
    account.addGap(from, to, T === "skipped" ? T : reason, items);
  }

  #assumeEpoch(account) {
    account.epoch = this.epoch;
    account.confirmed = false;
    this.epochNeeded = true;
  }

  /**
   * Set the feed's epoch as the server reported it. Numberings that began since it reported a different epoch
   * may belong to either of the two. They are assigned to this epoch when the server reports it again.
   */
  setEpoch(epoch) {
    this.epoch = epoch;
    for (const account of this.#accounts) {
      if (account.confirmed || account.seq === null) continue;
      account.confirmed = account.epoch === "" || account.epoch === epoch;
      account.epoch = account.confirmed ? epoch : "";
      this.epochNeeded ||= !account.confirmed;
    }
  }

  /** Set the positions from a server's reply: by epoch, then channel, then symbol. */
  setPositions(positions) {
    for (const { epoch, ...channels } of positions) {
      for (const [channel, seqs] of Object.entries(channels)) {
        for (const [symbol, seq] of Object.entries(seqs)) this.setPosition(channel, symbol, epoch, seq);
      }
    }
  }

  setPosition(channel, symbol, epoch, seq) {
    const account = this.account(channel, symbol);
    account.startRun(seq);
    account.epoch = epoch;
    account.confirmed = true;
  }

  /** Drop the positions of other streams: they start over when they are resubscribed. */
  endRunsOutside(subscriptions) {
    const coverage = new Coverage(subscriptions);
    for (const account of this.#accounts) {
      if (account.seq !== null && !coverage.covers(account.channel, account.symbol)) account.endRun();
    }
  }

  /**
   * Treat the epochs of all positions as confirmed, before sending them to the server, which will report a
   * wrong one. Until it does, the epochs must not change, because a disconnection may lose that report.
   */
  confirmEpochs() {
    for (const account of this.#accounts) account.confirmed = account.seq !== null;
  }

  /** Let all streams go on after a disconnection without the ticks published meanwhile. */
  markUnresumed() {
    for (const account of this.#accounts) account.unresumed = true;
  }

  /** The accounts with a position that these subscriptions cover, and those in `restored` do not. */
  resumable(subscriptions, restored = []) {
    const coverage = new Coverage(subscriptions);
    const excluded = new Coverage(restored);
    // Named streams can be looked up without a scan of all streams.
    const candidates = subscriptions.some(([, pattern]) => isWildcard(pattern))
      ? [...this.#accounts]
      : subscriptions.flatMap(([channel, symbol]) => this.#byChannel.get(channel)?.get(symbol) ?? []);
    return candidates.filter(
      ({ seq, channel, symbol }) =>
        seq !== null && coverage.covers(channel, symbol) && !excluded.covers(channel, symbol),
    );
  }

  /** The sums over all streams, and whether every tick is accounted for exactly once. */
  totals() {
    const sums = { streams: this.#accounts.size, published: 0 };
    for (const name of COUNTS) sums[name] = 0;
    let balanced = true;
    for (const account of this.#accounts) {
      for (const name of COUNTS) sums[name] += account[name];
      const { published, delivered, merged, skipped, gapped } = account;
      sums.published += published;
      balanced &&= (account.seq === null && !published) || published === delivered + merged + skipped + gapped;
    }
    return { ...sums, balanced: balanced && sums.repeated === 0 };
  }
}
