/** The line above the chart: the selected symbol's latest figures. */

import * as format from "./format.js";
import { write } from "./panel.js";

const MOVES = { "+": "up", "−": "down" };

/**
 * @param {import("./chosen.js").Chosen} chosen
 * @param {object|undefined} instrument the market's data of the symbol
 * @param {number} now
 */
export function showQuote({ symbol, lost }, instrument, now) {
  instrument?.forgetOutdated(now);
  const { last, bid, ask, change, decimals = 2 } = instrument ?? {};
  const text = format.change(change);
  write("quote-symbol", symbol || "–");
  write("quote-last", format.price(last, decimals));
  write("quote-change", text);
  write("quote-bid", format.price(bid, decimals));
  write("quote-ask", format.price(ask, decimals));
  write("lost", missing(lost));
  document.getElementById("quote-change").dataset.move = MOVES[text[0]] ?? "";
}

/** The title of the tab, which changes less often. */
export function showTitle(symbol, { last, decimals } = {}, isLive) {
  const old = isLive ? "" : " (not live)";
  const title = last === undefined ? "Tickcast" : `${symbol} ${format.price(last, decimals)}${old} – Tickcast`;
  if (document.title !== title) document.title = title;
}

function missing(lost) {
  if (lost === null) return "Trades before a restart may be missing";
  return lost ? `${format.count(lost)} trades are missing` : "";
}
