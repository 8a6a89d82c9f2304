/**
 * Fits the columns of a table to their widest texts. Each row is a separate grid, so the widths are
 * computed here and set for all rows in one property.
 *
 * @typedef {object} Column
 * @property {string} name its class
 * @property {number} weight its share of the remaining room
 * @property {number} [least] minimum width in pixels, regardless of the text
 * @property {number} [rank] columns with a rank are hidden when the pane is too narrow, the highest rank
 *   first; columns of one rank are hidden together
 */

/** Padding on both sides of a text, plus a margin for rounding and hinting. */
const PADDING = 12;
/** The table's own padding, on both sides. */
const MARGIN = 14;
/** The sort mark in the heading of a sorted column. */
const ARROW = " ↓";

const pen = document.createElement("canvas").getContext("2d");

export class Columns {
  #pane;
  #table;
  #columns;
  #widest = new Map();
  #room = 0;
  #isFitted = false;

  /**
   * @param {HTMLElement} pane the element on which the properties are set
   * @param {Column[]} columns in their order
   */
  constructor(pane, columns) {
    this.#pane = pane;
    this.#table = pane.querySelector("table");
    this.#columns = columns;
    new ResizeObserver(([{ contentRect }]) => {
      this.#room = contentRect.width;
      this.#isFitted = false;
    }).observe(this.#table);
  }

  /** Forget the widths of the texts. */
  reset() {
    this.#widest.clear();
    this.#isFitted = false;
  }

  /** Account for a text that was written into a column. Widths only grow, so that columns do not jitter. */
  add(name, text) {
    const widest = this.#widest.get(name) ?? "";
    if (text.length <= widest.length) return;
    this.#widest.set(name, text);
    this.#isFitted = false;
  }

  /** Set the widths, if something has changed. */
  fit() {
    if (this.#isFitted || !this.#room) return;
    this.#isFitted = true;
    const needs = new Map(this.#columns.map((column) => [column, this.#needOf(column)]));
    let room = this.#room - MARGIN;
    const chosen = new Set();
    const ranks = new Set(this.#columns.map(({ rank = 0 }) => rank).sort((a, b) => a - b));
    for (const rank of ranks) {
      const together = this.#columns.filter((column) => (column.rank ?? 0) === rank);
      const needed = together.reduce((sum, column) => sum + needs.get(column), 0);
      if (rank && needed > room) continue;
      for (const column of together) chosen.add(column);
      room -= needed;
    }
    const kept = this.#columns.filter((column) => chosen.has(column));
    const tracks = kept.map((column) =>
      column.weight ? `minmax(${needs.get(column)}px, ${column.weight}fr)` : `${needs.get(column)}px`,
    );
    this.#pane.style.setProperty("--columns", tracks.join(" "));
    const without = this.#columns.filter((column) => !chosen.has(column)).map(({ name }) => name);
    this.#pane.dataset.without = without.join(" ");
  }

  #needOf({ name, least = 0 }) {
    const head = this.#table.tHead.rows[0].querySelector(`.${name}`);
    const cell = this.#table.tBodies[0].querySelector(`.${name}`);
    // All digits have the same width.
    const text = (this.#widest.get(name) ?? "").replace(/\d/g, "0");
    const words = head.textContent.trim() + (head.dataset.sort ? ARROW : "");
    const needed = Math.max(cell ? widthOf(text, cell) : 0, least ? 0 : widthOf(words, head));
    return Math.ceil(Math.max(least, needed + PADDING));
  }
}

function widthOf(text, element) {
  if (!text) return 0;
  const { fontWeight, fontSize, fontFamily } = getComputedStyle(element);
  pen.font = `${fontWeight} ${fontSize} ${fontFamily}`;
  return pen.measureText(text).width;
}
