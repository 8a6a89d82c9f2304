/** Numbers and times as text. */

const MINUS = "−";
const NONE = "–";
/** The range that every browser can format. */
const DECIMALS_MAX = 20;

const formats = new Map();

function withDecimals(min, max) {
  const key = min * 32 + max;
  let format = formats.get(key);
  if (!format) {
    // Building a formatter is expensive, using it is not.
    format = new Intl.NumberFormat("en", { minimumFractionDigits: min, maximumFractionDigits: max });
    formats.set(key, format);
  }
  return format;
}

/**
 * @param {number|undefined} value
 * @param {number} decimals the decimals of this symbol's prices, so that a column lines up
 */
export function price(value, decimals) {
  return value === undefined ? NONE : withDecimals(decimals, decimals).format(value);
}

/** @param {number} value a size or volume, whole or fractional; a nonzero value is never shown as 0 */
export function size(value) {
  if (value >= 1e9) return `${withDecimals(2, 2).format(value / 1e9)}B`;
  if (value >= 1e6) return `${withDecimals(2, 2).format(value / 1e6)}M`;
  if (Number.isInteger(value) || value >= 1e4) return withDecimals(0, 0).format(value);
  return withDecimals(0, value >= 100 ? 2 : decimalsFrom(value, 6)).format(value);
}

const SHORT = [[1e9, "B"], [1e6, "M"], [1e3, "k"]];

/** @param {number} value a sum of sizes, short enough for a column: "9,876", "256k", "1.2M" */
export function volume(value) {
  if (value < 1) return withDecimals(0, decimalsFrom(value, 4)).format(value);
  if (value < 1e4) return withDecimals(0, value < 1e3 ? 2 : 0).format(value);
  // A value that would round to a thousand of a unit moves to the next unit.
  const [unit, sign] = SHORT.find(([each]) => value >= each * 0.9995);
  const decimals = value < 99.95 * unit ? 1 : 0;
  return `${withDecimals(decimals, decimals).format(value / unit)}${sign}`;
}

/** @param {number} value the same, in full */
export function exactVolume(value) {
  return withDecimals(0, decimalsFrom(value, 8)).format(value);
}

/** @param {number|undefined} ratio 0.01 becomes "+1.00%" */
export function change(ratio) {
  if (ratio === undefined) return NONE;
  const percent = (Math.abs(ratio) * 100).toFixed(2);
  if (Number(percent) === 0) return "0.00%";
  return `${ratio < 0 ? MINUS : "+"}${percent}%`;
}

/** @param {number|undefined} ratio 0.0001 is one basis point */
export function basisPoints(ratio) {
  return ratio === undefined ? NONE : `${withDecimals(1, 1).format(ratio * 1e4)} bp`;
}

/** @param {number} value events a second */
export function rate(value) {
  return value >= 100 ? withDecimals(0, 0).format(value) : value.toFixed(1);
}

/** @param {number} value */
export function count(value) {
  return withDecimals(0, 0).format(value);
}

/** @param {number} ms */
export function age(ms) {
  const seconds = ms / 1000;
  if (seconds < 1) return "<1 s";
  if (seconds < 100) return `${Math.floor(seconds)} s`;
  if (seconds < 6000) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

/**
 * The time of day of a tick, in milliseconds; sliced from the text, which is cheaper than a Date.
 *
 * @param {string} time RFC 3339, UTC
 */
export function timeOfDay(time) {
  const [whole, fraction = ""] = time.slice(11, -1).split(".");
  return `${whole}.${fraction.slice(0, 3).padEnd(3, "0")}`;
}

/** @param {number} value bytes */
export function bytes(value) {
  if (value >= 1e6) return `${withDecimals(2, 2).format(value / 1e6)} MB`;
  if (value >= 1e3) return `${withDecimals(1, 1).format(value / 1e3)} kB`;
  return `${withDecimals(0, 0).format(value)} B`;
}

/** @param {number} ms a delay */
export function delay(ms) {
  if (ms >= 10_000) return `${withDecimals(0, 0).format(ms / 1000)} s`;
  return ms >= 10 ? `${withDecimals(0, 0).format(ms)} ms` : `${withDecimals(1, 1).format(ms)} ms`;
}

/**
 * The number of decimals of a number, ignoring the noise of binary fractions: up to eight, or as many as
 * it takes to show five digits of a number below a ten-thousandth.
 */
export function decimalsOf(value) {
  if (value === 0 || !Number.isFinite(value)) return 0;
  // Not `String`, which would write an exponent below a millionth.
  const [digits, exponent] = Math.abs(value).toExponential(11).split("e");
  const fraction = digits.slice(2).replace(/0+$/, "").length;
  const needed = Math.max(0, fraction - Number(exponent));
  return Math.min(needed, Math.max(8, 4 - Number(exponent)), DECIMALS_MAX);
}

/** The given number of decimals, or as many as it takes to show two digits of a small number. */
function decimalsFrom(value, usual) {
  const exponent = value === 0 ? 0 : Math.floor(Math.log10(Math.abs(value)));
  return Math.min(Math.max(usual, 1 - exponent), DECIMALS_MAX);
}
