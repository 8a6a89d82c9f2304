/**
 * Tables whose columns fit their widest texts, and the table of the latest trades.
 *
 * @typedef {object} Column
 * @property {string} name its class
 * @property {number} weight its share of the remaining room
 * @property {number} [minPx] minimum width in pixels, regardless of the text
 * @property {number} [rank] columns with a rank are hidden when the pane is too narrow, the highest rank
 *   first; columns of one rank are hidden together
 */

import * as format from "./format.js";

/** Padding on both sides of a text, plus a margin for rounding and hinting. */
const PADDING = 12;
/** The table's own padding, on both sides. */
const MARGIN = 14;
/** The sort mark in the heading of a sorted column. */
const ARROW = " ↓";

const pen = document.createElement("canvas").getContext("2d");

/** Each row of a table is a separate grid, so the widths are computed here and set for all rows in one property. */
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
    const neededBy = new Map(this.#columns.map((column) => [column, this.#widthNeeded(column)]));
    let room = this.#room - MARGIN;
    const kept = new Set();
    const ranks = new Set(this.#columns.map(({ rank = 0 }) => rank).sort((a, b) => a - b));
    for (const rank of ranks) {
      const together = this.#columns.filter((column) => (column.rank ?? 0) === rank);
      const total = together.reduce((sum, column) => sum + neededBy.get(column), 0);
      if (rank && total > room) continue;
      for (const column of together) kept.add(column);
      room -= total;
    }
    const shown = this.#columns.filter((column) => kept.has(column));
    const tracks = shown.map((column) =>
      column.weight ? `minmax(${neededBy.get(column)}px, ${column.weight}fr)` : `${neededBy.get(column)}px`,
    );
    this.#pane.style.setProperty("--columns", tracks.join(" "));
    const without = this.#columns.filter((column) => !kept.has(column)).map(({ name }) => name);
    this.#pane.dataset.without = without.join(" ");
  }

  #widthNeeded({ name, minPx = 0 }) {
    const head = this.#table.tHead.rows[0].querySelector(`.${name}`);
    const cell = this.#table.tBodies[0].querySelector(`.${name}`);
    // All digits have the same width.
    const text = (this.#widest.get(name) ?? "").replace(/\d/g, "0");
    const heading = head.textContent.trim() + (head.dataset.sort ? ARROW : "");
    const needed = Math.max(cell ? widthOf(text, cell) : 0, minPx ? 0 : widthOf(heading, head));
    return Math.ceil(Math.max(minPx, needed + PADDING));
  }
}

function widthOf(text, element) {
  if (!text) return 0;
  const { fontWeight, fontSize, fontFamily } = getComputedStyle(element);
  pen.font = `${fontWeight} ${fontSize} ${fontFamily}`;
  return pen.measureText(text).width;
}

// -- the latest trades

const TRADES_MAX = 40;
const TRADES_EVERY_MS = 200;
const TRADE_COLUMNS = [
  { name: "time", weight: 34 },
  { name: "price", weight: 25 },
  { name: "size", weight: 25, rank: 1 },
  { name: "side", weight: 16, rank: 2 },
];
const SIDES = { B: ["Buy", "up"], S: ["Sell", "down"] };

/** The latest trades of the selected symbol, newest first: a fixed set of rows whose text moves down. */
export class TradeTable {
  #body;
  #note;
  #columns;
  #rows = [];
  #drawnTrades = -1;
  #symbol = "";
  #drawnAt = -Infinity;

  /**
   * @param {HTMLTableSectionElement} body
   * @param {HTMLElement} note shown while there are no trades
   */
  constructor(body, note) {
    this.#body = body;
    this.#note = note;
    this.#columns = new Columns(body.closest(".pane"), TRADE_COLUMNS);
  }

  /**
   * @param {import("./connections.js").ChartConnection} connection
   * @param {number} decimals of its prices
   * @param {number} now
   */
  draw(connection, decimals, now) {
    const same = connection.symbol === this.#symbol;
    this.#columns.fit();
    if (!same) this.#columns.reset();
    // Slower than the chart: users can't read lines that move too often.
    if (same && (connection.traded === this.#drawnTrades || now - this.#drawnAt < TRADES_EVERY_MS)) return;
    this.#symbol = connection.symbol;
    this.#drawnTrades = connection.traded;
    this.#drawnAt = now;
    const trades = connection.recent.slice(-TRADES_MAX).reverse();
    while (this.#rows.length < trades.length) this.#addRow();
    this.#rows.forEach((row, at) => this.#fill(row, trades[at], decimals));
    this.#note.hidden = trades.length > 0;
  }

  #addRow() {
    const element = document.createElement("tr");
    const texts = TRADE_COLUMNS.map(({ name }) => {
      const cell = document.createElement("td");
      cell.className = name;
      element.append(cell);
      return cell.appendChild(new Text());
    });
    this.#body.append(element);
    this.#rows.push({ element, texts, trade: undefined });
  }

  #fill(row, trade, decimals) {
    row.element.hidden = !trade;
    if (!trade || (trade === row.trade && decimals === row.decimals)) return;
    row.decimals = decimals;
    row.trade = trade;
    const [side, move] = SIDES[trade.tks] ?? ["–", ""];
    row.element.dataset.move = move;
    const shown = [format.timeOfDay(trade.t), format.price(trade.p, decimals), format.size(trade.s), side];
    shown.forEach((text, at) => {
      this.#columns.add(TRADE_COLUMNS[at].name, text);
      if (row.texts[at].data !== text) row.texts[at].data = text;
    });
  }
}
