/** What is to be said of the state of things, in words; nothing here draws. */

import { asksForCredentials } from "./credentials.js";
import { age } from "./format.js";

const BEHIND_MS = 3_000;
const QUIET_MS = 15_000;
const SLOW_SHOWN_MS = 10_000;
/** The worst of two connections is the page's. */
const WORST_FIRST = ["closed", "reconnecting", "connecting", "connected"];

/**
 * How live the page is. It has two connections, and is as live as the one that is less so.
 *
 * @typedef {object} PageState
 * @property {"connecting"|"connected"|"stale"|"reconnecting"|"closed"} name `connected` only where all
 *   that is shown is live; `stale`: what is shown is old, though the connections stand
 * @property {string} reason in the server's words, or empty
 * @property {number} code where it is closed
 * @property {boolean} isListLive whether the watchlist is
 * @property {boolean} isChartLive whether the chart and its trades are
 *
 * @param {object} facts
 * @param {import("./feed.js").State} facts.list of the watchlist's connection
 * @param {import("./feed.js").State} facts.chart of the chart's
 * @param {number} facts.ageMs how old what is shown is, as far as the server has said
 * @param {number} facts.silentMs since the server last said anything on one of them; it does so every
 *   second
 * @param {number} facts.listBehindMs how long the list has lacked what the chart has
 * @param {number} facts.chartBehindMs the other way round
 * @returns {PageState}
 */
export function pageState({ list, chart, ageMs, silentMs, listBehindMs, chartBehindMs }) {
  const isOld = Math.max(ageMs, silentMs) > BEHIND_MS;
  const isListLive = list.name === "connected" && !isOld && listBehindMs <= BEHIND_MS;
  const isChartLive = chart.name === "connected" && !isOld && chartBehindMs <= BEHIND_MS;
  const worst = WORST_FIRST.find((name) => list.name === name || chart.name === name);
  const those = [list, chart].filter(({ name }) => name === worst);
  // Of two that have ended, one may have been closed by this page because of the other.
  const { name, reason, code } = those.find((each) => each.reason || each.code) ?? those[0];
  const isStale = name === "connected" && !(isListLive && isChartLive);
  return { name: isStale ? "stale" : name, reason, code, isListLive, isChartLive };
}

/** How long one of two connections has lacked ticks of a stream that the other one has. */
export class StreamLag {
  #epoch = "";
  #mark = 0;
  #since = 0;

  /**
   * @param {{epoch: string, seq: number|null}} own where the one stands
   * @param {{epoch: string, seq: number|null}} other where the other one does
   * @param {number} now
   * @returns {number} milliseconds
   */
  read(own, other, now) {
    const isComparable = other.seq !== null && other.epoch !== "" && other.epoch === this.#epoch && (own.seq === null || own.epoch === other.epoch);
    // Where the one has heard nothing of the stream, it may be that there was nothing to hear.
    const isThere = own.seq === null ? other.seq <= this.#mark : own.seq >= this.#mark;
    if (!isComparable || isThere) {
      this.#epoch = other.epoch;
      this.#mark = other.seq ?? 0;
      this.#since = now;
    }
    return now - this.#since;
  }
}

/**
 * @typedef {object} Banner
 * @property {string} text
 * @property {"bad"|"warn"|"note"} tone
 * @property {string} [feed] another one that the reader may want to go to
 *
 * @param {object} facts
 * @param {PageState} facts.state
 * @param {string} facts.feed
 * @param {"malformed"|"unknown"|""} facts.feedFault what is wrong with its name
 * @param {string} facts.refused why the server does not give what was asked for; empty: it does
 * @param {string} facts.lostAt the time of day at which the page was last live; empty: it never was
 * @param {number} facts.ageMs how old what is shown is, as far as the server has said
 * @param {number} facts.silentMs since the server last said anything; it does so every second
 * @param {object|undefined} facts.replay the server's latest message of that name
 * @param {boolean} facts.eased whether trades are conflated
 * @param {number} facts.quietMs since the last tick
 * @param {number} facts.slowMs since this page was last told to be too slow
 * @returns {Banner|undefined} the most important thing to know
 */
export function bannerOf({ state, feed, feedFault, refused, lostAt, ageMs, silentMs, replay, eased, quietMs, slowMs }) {
  const reason = state.reason ? ` (${state.reason})` : "";
  const old = lostAt ? ` What you see is from before ${lostAt} UTC.` : "";
  if (feedFault === "malformed") {
    return { text: `“${feed.slice(0, 40)}” can't be the name of a feed: it is 1 to 32 of a-z 0-9 _ -. Change feed= in the address.`, tone: "bad", feed: "live" };
  }
  if (feedFault === "unknown") {
    return { text: `This server has no feed “${feed}”. Change feed= in the address.`, tone: "bad", feed: "live" };
  }
  if (state.name === "closed" && asksForCredentials(state.code)) {
    return { text: `Not connected: the server asks for a key or a token${reason}.${old}`, tone: "bad" };
  }
  if (state.name === "closed") {
    const live = state.isListLive ? " The watchlist is live." : state.isChartLive ? " The chart is live." : "";
    return { text: `Disconnected${reason}. Reload the page to try again.${live || old}`, tone: "bad" };
  }
  if (state.name === "reconnecting") {
    return { text: `Connection lost${reason}. Trying again.${old}`, tone: "bad" };
  }
  if (state.name === "connecting") {
    return reason ? { text: `Can't connect yet${reason}. Trying again.`, tone: "warn" } : undefined;
  }
  if (refused) return { text: refused, tone: "bad" };
  if (silentMs > BEHIND_MS) {
    return { text: `Stale: the server has said nothing for ${age(silentMs)}.`, tone: "warn" };
  }
  if (ageMs > BEHIND_MS) {
    return { text: `Stale: what you see is ${age(ageMs)} old.`, tone: "warn" };
  }
  if (state.name === "stale") {
    return { text: `Stale: the ${state.isChartLive ? "watchlist" : "chart"} is catching up.`, tone: "warn" };
  }
  if (slowMs < SLOW_SHOWN_MS) {
    return { text: "This page was too slow. Some ticks were skipped; volumes marked ≥ are too low.", tone: "warn" };
  }
  if (eased) {
    return { text: "Conflated: so many trades come that you see the latest of each symbol, four times a second. Volumes marked ≥ are too low.", tone: "note" };
  }
  // A replay that pauses is told by its bar.
  if (!replay && quietMs > QUIET_MS && quietMs < Infinity) {
    return { text: `No tick for ${Math.floor(quietMs / 1000)} s. The connection is alive.`, tone: "note" };
  }
  return undefined;
}

/** Sums of what two connections count. */
export function sum(a, b) {
  const sums = {};
  for (const name of Object.keys(a)) {
    sums[name] = typeof a[name] === "boolean" ? a[name] && b[name] : a[name] + b[name];
  }
  return sums;
}
