/**
 * The state of the view, kept in the page's address, so that a link shares it.
 *
 * @typedef {object} View
 * @property {string} feed
 * @property {string[]|null} symbols the watchlist; null means every symbol of the feed
 * @property {string} symbol the selected symbol; if empty, the first of the list
 * @property {string} timeframe of the candles: a key of `TIMEFRAMES`
 * @property {string} sort a column's name, after "-" for descending order
 * @property {"light"|"dark"|""} theme empty means the system's theme
 * @property {"json"|"msgpack"} encoding
 */

/** The length of a candle in seconds. */
export const TIMEFRAMES = { "1s": 1, "5s": 5, "1m": 60, "5m": 300 };
/** Each symbol takes two entries, trades and quotes; a server grants 1,024 by default. */
export const SYMBOLS_MAX = 400;
const SYMBOL = /^[A-Za-z0-9._/:-]{1,32}$/;
const FEED = /^[a-z0-9_-]{1,32}$/;
const SORT = /^-?[a-z]{1,10}$/;
const DEFAULTS = { feed: "live", symbols: null, symbol: "", timeframe: "1s", sort: "symbol", theme: "", encoding: "json" };

/** @param {string} text */
export const isSymbol = (text) => SYMBOL.test(text);

/**
 * Parse a query. Invalid values are treated as absent, except for the feed's name, which is kept
 * as it is, because showing another feed in its place would be wrong.
 *
 * @param {string} query
 * @returns {View}
 */
export function readView(query) {
  const given = new URLSearchParams(query);
  const among = (name, values) => (values.includes(given.get(name)) ? given.get(name) : DEFAULTS[name]);
  const symbols = given.get("symbols");
  const named = symbols?.split(",").filter(isSymbol).slice(0, SYMBOLS_MAX);
  return {
    feed: given.get("feed") || DEFAULTS.feed,
    symbols: named ? [...new Set(named)] : null,
    symbol: isSymbol(given.get("symbol") ?? "") ? given.get("symbol") : "",
    timeframe: among("timeframe", Object.keys(TIMEFRAMES)),
    sort: SORT.test(given.get("sort") ?? "") ? given.get("sort") : DEFAULTS.sort,
    theme: among("theme", ["light", "dark"]),
    encoding: among("encoding", ["json", "msgpack"]),
  };
}

/**
 * @param {View} view
 * @returns {string} its query, without defaults; readable rather than escaped
 */
export function queryOf(view) {
  const parts = Object.entries(view)
    .filter(([name, value]) => value !== DEFAULTS[name])
    .map(([name, value]) => `${name}=${String(value).replace(/[^A-Za-z0-9._/:,-]/g, encodeURIComponent)}`);
  return parts.length ? `?${parts.join("&")}` : "";
}

/** @param {string} feed */
export const isFeed = (feed) => FEED.test(feed);
