/** The watchlist: its rows, their order, and which of them are drawn. */

import { Columns } from "./columns.js";
import { Row } from "./row.js";

/** Slower than frames: users can't read figures that change too often. */
export const DRAW_EVERY_MS = 100;
/** Users can't follow rows that change places all the time. */
const SORT_EVERY_MS = 2_000;
/** A longer symbol is cut; hover over it to see all of it. */
const SYMBOL_PX = 74;
const COLUMNS = [
  { name: "symbol", weight: 13.5, least: SYMBOL_PX },
  { name: "last", weight: 12 },
  { name: "change", weight: 10, rank: 1 },
  { name: "trend", weight: 12.5, least: 60, rank: 3 },
  { name: "bid", weight: 10.5, rank: 2 },
  { name: "ask", weight: 10.5, rank: 2 },
  { name: "spread", weight: 8.5, rank: 6 },
  { name: "volume", weight: 10.5, rank: 4 },
  { name: "rate", weight: 8, rank: 5 },
  { name: "remove", weight: 0, least: 30 },
];
const bySymbol = new Intl.Collator("en", { numeric: true }).compare;
const VALUES = {
  last: ({ last }) => last,
  change: ({ change }) => change,
  bid: ({ bid }) => bid,
  ask: ({ ask }) => ask,
  spread: ({ relativeSpread }) => relativeSpread,
  volume: ({ volume }) => volume,
  rate: ({ rate }, now) => rate.read(now),
};

export class Table {
  #body;
  #rows = new Map();
  #sort = "symbol";
  #sortedAt = -Infinity;
  #drawnAt = -Infinity;
  #filter = "";
  #chosen = "";
  #columns;

  /** @param {HTMLTableSectionElement} body */
  constructor(body) {
    this.#body = body;
    this.#columns = new Columns(body.closest(".pane"), COLUMNS);
  }

  /** The symbols shown, in order. */
  get shown() {
    return Array.from(this.#body.rows).filter((row) => !row.hidden).map((row) => row.dataset.symbol);
  }

  /** @param {string} sort a column, after "-" for descending order */
  setSort(sort) {
    this.#sort = sort.replace("-", "") in VALUES ? sort : sort === "-symbol" ? sort : "symbol";
    this.#sortedAt = -Infinity;
    for (const head of this.#body.parentElement.tHead.rows[0].cells) {
      const direction = sort.startsWith("-") ? "descending" : "ascending";
      if (head.dataset.sort === this.#sort.replace("-", "")) head.setAttribute("aria-sort", direction);
      else head.removeAttribute("aria-sort");
    }
  }

  /** @param {(sort: string) => void} onSort called with the order that a click on a heading requests */
  listenToHead(onSort) {
    this.#body.parentElement.tHead.addEventListener("click", ({ target }) => {
      const name = target.closest("th")?.dataset.sort;
      if (!name) return;
      // Figures sort in descending order first, so that the largest is on top.
      const [first, second] = name === "symbol" ? [name, `-${name}`] : [`-${name}`, name];
      onSort(this.#sort === first ? second : first);
    });
  }

  /** Show only symbols that contain this text. */
  setFilter(text) {
    this.#filter = text.toUpperCase();
    for (const row of this.#rows.values()) this.#hide(row);
  }

  /** Mark the selected symbol. */
  choose(symbol) {
    this.#rows.get(this.#chosen)?.choose(false);
    this.#chosen = symbol;
    this.#rows.get(symbol)?.choose(true);
  }

  focus(symbol) {
    this.#rows.get(symbol)?.focus();
  }

  /**
   * Update the rows from the market, and write the changes to those in view. Returns whether it was time
   * for an update.
   */
  draw(market, now) {
    if (now - this.#drawnAt < DRAW_EVERY_MS) return false;
    this.#drawnAt = now;
    if (this.#matchRows(market.instruments)) this.#sortedAt = -Infinity;
    if (now - this.#sortedAt > SORT_EVERY_MS) this.#arrange(now);
    for (const row of this.#rows.values()) {
      if (row.isInSight && !row.element.hidden) row.draw(market, now, this.#columns);
    }
    this.#columns.fit();
    return true;
  }

  #matchRows(instruments) {
    let changed = false;
    for (const [symbol, row] of this.#rows) {
      if (instruments.get(symbol) === row.instrument) continue;
      row.element.remove();
      this.#rows.delete(symbol);
      this.#columns.reset();
      for (const each of this.#rows.values()) each.measure(this.#columns);
    }
    for (const [symbol, instrument] of instruments) {
      if (this.#rows.has(symbol)) continue;
      const row = new Row(instrument);
      this.#rows.set(symbol, row);
      this.#hide(row);
      row.choose(symbol === this.#chosen);
      changed = true;
    }
    return changed;
  }

  #hide(row) {
    row.element.hidden = !row.instrument.symbol.toUpperCase().includes(this.#filter);
  }

  #arrange(now) {
    this.#sortedAt = now;
    const name = this.#sort.replace("-", "");
    const sign = this.#sort.startsWith("-") ? -1 : 1;
    const keyed = Array.from(this.#rows.values(), (row) => {
      const { symbol } = row.instrument;
      return { row, symbol, value: VALUES[name]?.(row.instrument, now) };
    });
    keyed.sort((a, b) => {
      if (name === "symbol") return sign * bySymbol(a.symbol, b.symbol);
      // Unknown values sort last in either order.
      if (a.value === undefined || b.value === undefined) {
        return Number(a.value === undefined) - Number(b.value === undefined) || bySymbol(a.symbol, b.symbol);
      }
      return sign * (a.value - b.value) || bySymbol(a.symbol, b.symbol);
    });
    const same = keyed.every(({ row }, at) => this.#body.rows[at] === row.element);
    if (same) return;
    const focused = document.activeElement;
    this.#body.replaceChildren(...keyed.map(({ row }) => row.element));
    if (this.#body.contains(focused)) focused.focus({ preventScroll: true });
  }
}
