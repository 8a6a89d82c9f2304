/** Counts over time, in typed buffers of a fixed size; none of them needs a timer. */

const RATE_SECONDS = 5;
export const TREND_POINTS = 120;
const TREND_STEP_MS = 500;

/** Events a second over the last few whole seconds. */
export class Rate {
  #counts = new Float64Array(RATE_SECONDS + 1);
  #second = 0;
  #since = -1;

  add(now, count = 1) {
    this.#advance(now);
    if (this.#since < 0) this.#since = now;
    this.#counts[this.#second % this.#counts.length] += count;
  }

  read(now) {
    this.#advance(now);
    if (this.#since < 0) return 0;
    const current = this.#second % this.#counts.length;
    const total = this.#counts.reduce((sum, count, at) => (at === current ? sum : sum + count), 0);
    const seconds = this.#second - Math.floor(this.#since / 1000);
    return total / Math.max(1, Math.min(seconds, RATE_SECONDS));
  }

  #advance(now) {
    const second = Math.floor(now / 1000);
    const from = Math.max(this.#second + 1, second - RATE_SECONDS);
    for (let at = from; at <= second; at++) this.#counts[at % this.#counts.length] = 0;
    this.#second = second;
  }
}

/** One price each half second for a minute; unknown prices leave a hole (NaN). */
export class Trend {
  #points = new Float64Array(TREND_POINTS).fill(NaN);
  #slot = 0;
  #price = NaN;

  set(price, now) {
    this.advance(now, true);
    this.#price = price;
    this.#points[this.#slot % TREND_POINTS] = price;
  }

  /** @param {boolean} known whether the price is known to be unchanged since the last call */
  advance(now, known) {
    const slot = Math.floor(now / TREND_STEP_MS);
    const fill = known ? this.#price : NaN;
    const from = Math.max(this.#slot + 1, slot - TREND_POINTS + 1);
    for (let at = from; at <= slot; at++) this.#points[at % TREND_POINTS] = fill;
    this.#slot = slot;
  }

  /** The prices, oldest first. */
  *[Symbol.iterator]() {
    for (let at = 1; at <= TREND_POINTS; at++) {
      yield this.#points[(this.#slot + at) % TREND_POINTS];
    }
  }
}

const SECONDS = 60;
const BUCKETS = 160;
const LEAST_MS = 0.05;
/** Each bucket is wider than the previous one by this factor: percentiles are accurate to 5 %. */
const STEP = Math.log(1.1);

/** Delays over the last minute: a histogram for each second. */
export class Delays {
  #counts = new Uint32Array(SECONDS * BUCKETS);
  #second = 0;

  add(ms, now) {
    this.#advance(now);
    const bucket = Math.ceil(Math.log(Math.max(ms, LEAST_MS) / LEAST_MS) / STEP);
    this.#counts[(this.#second % SECONDS) * BUCKETS + Math.min(bucket, BUCKETS - 1)] += 1;
  }

  /**
   * @param {number[]} ratios such as 0.5 and 0.99, ascending
   * @returns {number[]|undefined} the delay that each share of ticks does not exceed, in milliseconds
   */
  percentiles(ratios, now) {
    this.#advance(now);
    const sums = new Float64Array(BUCKETS);
    this.#counts.forEach((count, at) => (sums[at % BUCKETS] += count));
    const total = sums.reduce((sum, count) => sum + count, 0);
    if (!total) return undefined;
    return ratios.map((ratio) => {
      let [bucket, below] = [0, sums[0]];
      while (below < ratio * total) below += sums[++bucket];
      return LEAST_MS * Math.exp(bucket * STEP);
    });
  }

  #advance(now) {
    const second = Math.floor(now / 1000);
    const from = Math.max(this.#second + 1, second - SECONDS + 1);
    for (let at = from; at <= second; at++) {
      const start = (at % SECONDS) * BUCKETS;
      this.#counts.fill(0, start, start + BUCKETS);
    }
    this.#second = second;
  }
}

const CLOCK_SAMPLES_LEAST = 4;

/** How far the server's clock is ahead of ours, measured by pings: the fastest recent ping counts. */
export class Clock {
  #samples = [];

  /**
   * @param {number} askedAt ours, milliseconds since 1970, when the ping was sent
   * @param {number} answeredAt ours, when the answer came
   * @param {number} theirs the server's clock in the answer
   */
  learn(askedAt, answeredAt, theirs) {
    const ahead = theirs - (askedAt + answeredAt) / 2;
    this.#samples = [...this.#samples.slice(-7), { ahead, took: answeredAt - askedAt }];
  }

  /** Whether there were enough pings: while the page is being built, answers wait to be read. */
  get isSettled() {
    return this.#samples.length >= CLOCK_SAMPLES_LEAST;
  }

  /** Milliseconds; undefined until it is known. */
  get ahead() {
    const [first, ...rest] = this.#samples;
    return first && rest.reduce((best, each) => (each.took < best.took ? each : best), first).ahead;
  }
}
