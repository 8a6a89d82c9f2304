/** What is to be said of the state of things, in words; nothing here draws. */

import { asksForCredentials } from "./credentials.js";

const BEHIND_MS = 3_000;
const QUIET_MS = 15_000;
const SLOW_SHOWN_MS = 10_000;

/**
 * @param {object} facts
 * @param {import("./feed.js").State} facts.state of the watchlist's connection
 * @param {string} facts.refused why the server does not give what was asked for; empty: it does
 * @param {string} facts.lostAt the time of day at which the connection was lost; empty: it never was
 * @param {number} facts.lagMs how far behind the server says that we are
 * @param {number} facts.silentMs since the server last said anything; it does so every second
 * @param {object|undefined} facts.replay the server's latest message of that name
 * @param {boolean} facts.eased whether trades are conflated
 * @param {number} facts.quietMs since the last tick
 * @param {number} facts.slowMs since this page was last told to be too slow
 * @returns {{text: string, tone: "bad"|"warn"|"note"}|undefined} the most important thing to know
 */
export function bannerOf({ state, refused, lostAt, lagMs, silentMs, replay, eased, quietMs, slowMs }) {
  const reason = state.reason ? ` (${state.reason})` : "";
  const old = lostAt ? ` What you see is from before ${lostAt} UTC.` : "";
  if (state.name === "closed" && asksForCredentials(state.code)) {
    return { text: `Not connected: the server asks for a key or a token${reason}.${old}`, tone: "bad" };
  }
  if (state.name === "closed") {
    return { text: `Disconnected${reason}. Reload the page to try again.${old}`, tone: "bad" };
  }
  if (state.name === "reconnecting") {
    return { text: `Connection lost${reason}. Trying again.${old}`, tone: "bad" };
  }
  if (state.name === "connecting") {
    return reason ? { text: `Can't connect yet${reason}. Trying again.`, tone: "warn" } : undefined;
  }
  if (refused) return { text: refused, tone: "bad" };
  if (silentMs > BEHIND_MS) {
    return { text: `Stale: the server has said nothing for ${Math.floor(silentMs / 1000)} s.`, tone: "warn" };
  }
  if (lagMs > BEHIND_MS) {
    return { text: `Stale: what arrives is ${Math.round(lagMs / 1000)} s old.`, tone: "warn" };
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
