/** How live the page is, and the banner that says so. Nothing here draws. */

import { age } from "./format.js";

const BEHIND_MS = 3_000;
const NO_TICK_MS = 15_000;
const SKIPPED_SHOWN_MS = 10_000;
/** Codes of errors and closes that ask for credentials, or reject them. */
const CREDENTIALS_MISSING = new Set([401, 4002]);
const CREDENTIALS_REJECTED = new Set([402, 4001]);
/** The worse state of two connections is the page's. */
const WORST_FIRST = ["closed", "reconnecting", "connecting", "connected"];

/** @param {number} code the code of an error or a close */
export const rejectsCredentials = (code) => CREDENTIALS_REJECTED.has(code);
export const needsCredentials = (code) => CREDENTIALS_MISSING.has(code) || rejectsCredentials(code);

/**
 * How live the page is. It has two connections, and is as live as the less live one.
 *
 * @typedef {object} PageState
 * @property {"connecting"|"connected"|"stale"|"reconnecting"|"closed"} name `connected`: everything
 *   on the page is live; `stale`: the data is old, though the connections are open
 * @property {string} reason in the server's words, or empty
 * @property {number} code if the state is closed
 * @property {boolean} isListLive whether the watchlist is live
 * @property {boolean} isChartLive whether the chart and its trades are live
 *
 * @param {object} facts
 * @param {import("./feed.js").State} facts.list state of the watchlist's connection
 * @param {import("./feed.js").State} facts.chart state of the chart's connection
 * @param {number} facts.ageMs age of the data, as far as the server has reported it
 * @param {number} facts.silentMs time since the server last sent anything on one of them; it does so
 *   every second
 * @param {number} facts.listBehindMs how long the list has lacked ticks that the chart has
 * @param {number} facts.chartBehindMs how long the chart has lacked ticks that the list has
 * @returns {PageState}
 */
export function pageState({ list, chart, ageMs, silentMs, listBehindMs, chartBehindMs }) {
  const isOld = Math.max(ageMs, silentMs) > BEHIND_MS;
  const isListLive = list.name === "connected" && !isOld && listBehindMs <= BEHIND_MS;
  const isChartLive = chart.name === "connected" && !isOld && chartBehindMs <= BEHIND_MS;
  const worst = WORST_FIRST.find((name) => list.name === name || chart.name === name);
  const those = [list, chart].filter(({ name }) => name === worst);
  // If both have ended, this page may have closed one of them because of the other.
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
   * @param {{epoch: string, seq: number|null}} own position of the one connection
   * @param {{epoch: string, seq: number|null}} other position of the other connection
   * @param {number} now
   * @returns {number} milliseconds
   */
  read(own, other, now) {
    const isComparable = other.seq !== null && other.epoch !== "" && other.epoch === this.#epoch && (own.seq === null || own.epoch === other.epoch);
    // If this connection has received nothing of the stream, there may have been nothing to receive.
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
 * @property {string} [feed] another feed that the user may want to switch to
 *
 * @param {object} facts
 * @param {PageState} facts.state
 * @param {string} facts.feed
 * @param {"malformed"|"unknown"|""} facts.feedFault what is wrong with its name
 * @param {string} facts.refused why the server refuses the request; empty if it does not
 * @param {string} facts.lostAt the time of day at which the page was last live; empty if it never was
 * @param {number} facts.ageMs age of the data, as far as the server has reported it
 * @param {number} facts.silentMs time since the server last sent anything; it does so every second
 * @param {object|undefined} facts.replay the server's latest replay message
 * @param {boolean} facts.conflated whether trades are conflated
 * @param {number} facts.quietMs time since the last tick
 * @param {number} facts.skippedMs time since the server last reported that this page is too slow
 * @returns {Banner|undefined} the most important thing to know
 */
export function bannerOf({ state, feed, feedFault, refused, lostAt, ageMs, silentMs, replay, conflated, quietMs, skippedMs }) {
  const reason = state.reason ? ` (${state.reason})` : "";
  const old = lostAt ? ` The data is from before ${lostAt} UTC.` : "";
  if (feedFault === "malformed") {
    return { text: `“${feed.slice(0, 40)}” can't be the name of a feed: it is 1 to 32 of a-z 0-9 _ -. Change feed= in the address.`, tone: "bad", feed: "live" };
  }
  if (feedFault === "unknown") {
    return { text: `This server has no feed “${feed}”. Change feed= in the address.`, tone: "bad", feed: "live" };
  }
  if (state.name === "closed" && needsCredentials(state.code)) {
    return { text: `Not connected: the server requires a key or a token${reason}.${old}`, tone: "bad" };
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
    return { text: `Stale: the server has sent nothing for ${age(silentMs)}.`, tone: "warn" };
  }
  if (ageMs > BEHIND_MS) {
    return { text: `Stale: the data is ${age(ageMs)} old.`, tone: "warn" };
  }
  if (state.name === "stale") {
    return { text: `Stale: the ${state.isChartLive ? "watchlist" : "chart"} is catching up.`, tone: "warn" };
  }
  if (skippedMs < SKIPPED_SHOWN_MS) {
    return { text: "This page was too slow. Some ticks were skipped; volumes marked ≥ are too low.", tone: "warn" };
  }
  if (conflated) {
    return { text: "Conflated: there are too many trades, so you see the latest of each symbol four times a second. Volumes marked ≥ are too low.", tone: "note" };
  }
  // The replay's own bar shows that it is paused.
  if (!replay && quietMs > NO_TICK_MS && quietMs < Infinity) {
    return { text: `No tick for ${Math.floor(quietMs / 1000)} s. The connection is alive.`, tone: "note" };
  }
  return undefined;
}

/** Sums of the counts of two connections. */
export function sum(a, b) {
  const sums = {};
  for (const name of Object.keys(a)) {
    sums[name] = typeof a[name] === "boolean" ? a[name] && b[name] : a[name] + b[name];
  }
  return sums;
}
