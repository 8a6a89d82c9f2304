/** The watchlist: its rows, their order, and which of them are drawn. */

import * as format from "./format.js";
import { TREND_POINTS } from "./market.js";
import { Columns } from "./tables.js";

/** Slower than frames: users can't read figures that change too often. */
export const DRAW_EVERY_MS = 100;
/** Users can't follow rows that change places all the time. */
const SORT_EVERY_MS = 2_000;
/** A longer symbol is cut; hover over it to see all of it. */
const SYMBOL_PX = 74;
const COLUMNS = [
  { name: "symbol", weight: 13.5, minPx: SYMBOL_PX },
  { name: "last", weight: 12 },
  { name: "change", weight: 10, rank: 1 },
  { name: "trend", weight: 12.5, minPx: 60, rank: 3 },
  { name: "bid", weight: 10.5, rank: 2 },
  { name: "ask", weight: 10.5, rank: 2 },
  { name: "spread", weight: 8.5, rank: 6 },
  { name: "volume", weight: 10.5, rank: 4 },
  { name: "rate", weight: 8, rank: 5 },
  { name: "remove", weight: 0, minPx: 30 },
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

export class Watchlist {
  #body;
  #rows = new Map();
  #sort = "symbol";
  #sortedAt = -Infinity;
  #drawnAt = -Infinity;
  #filter = "";
  #selected = "";
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
  onHeadClick(onSort) {
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

  /** Mark the row of the selected symbol. */
  select(symbol) {
    this.#rows.get(this.#selected)?.setSelected(false);
    this.#selected = symbol;
    this.#rows.get(symbol)?.setSelected(true);
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
    if (this.#updateRows(market.instruments)) this.#sortedAt = -Infinity;
    if (now - this.#sortedAt > SORT_EVERY_MS) this.#sortRows(now);
    for (const row of this.#rows.values()) {
      if (row.isVisible && !row.element.hidden) row.draw(market, now, this.#columns);
    }
    this.#columns.fit();
    return true;
  }

  #updateRows(instruments) {
    let changed = false;
    for (const [symbol, row] of this.#rows) {
      if (instruments.get(symbol) === row.instrument) continue;
      row.element.remove();
      this.#rows.delete(symbol);
      this.#columns.reset();
      for (const each of this.#rows.values()) each.addTexts(this.#columns);
    }
    for (const [symbol, instrument] of instruments) {
      if (this.#rows.has(symbol)) continue;
      const row = new Row(instrument);
      this.#rows.set(symbol, row);
      this.#hide(row);
      row.setSelected(symbol === this.#selected);
      changed = true;
    }
    return changed;
  }

  #hide(row) {
    row.element.hidden = !row.instrument.symbol.toUpperCase().includes(this.#filter);
  }

  #sortRows(now) {
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

// -- rows

const SVG = "http://www.w3.org/2000/svg";
const TREND_HEIGHT = 24;
const TREND_EVERY_MS = 1000;
/** Fewer points don't fill the width. */
const TREND_MIN_POINTS = 20;
/** Moves below this fraction of the price are not enlarged. */
const TREND_MIN_RANGE = 0.0002;
/** Without a fade: a hundred of them would keep the browser painting continuously. */
const FLASH_MS = 350;
const FIGURES = ["last", "change", "bid", "ask", "spread", "volume", "rate"];

class Row {
  /** Whether the browser draws the row; assumed until it reports otherwise. */
  isVisible = true;
  #cells = {};
  #texts = {};
  #shown = {};
  #columns = undefined;
  #path;
  #select;
  #remove;
  #last = undefined;
  #volume = undefined;
  #incomplete = false;
  #flashUntil = 0;
  #trendAt = -Infinity;

  constructor(instrument) {
    this.instrument = instrument;
    this.element = document.createElement("tr");
    this.element.dataset.symbol = instrument.symbol;
    this.element.addEventListener("contentvisibilityautostatechange", ({ skipped }) => (this.isVisible = !skipped));
    for (const { name } of COLUMNS) {
      const cell = document.createElement(name === "symbol" ? "th" : "td");
      cell.className = name;
      this.element.append(cell);
      this.#cells[name] = cell;
    }
    // Changing the text of a node is cheaper than replacing the nodes of a cell.
    for (const name of FIGURES) this.#cells[name].append((this.#texts[name] = new Text()));
    this.#cells.symbol.scope = "row";
    this.#select = button("pick", instrument.symbol, `Show ${instrument.symbol}`);
    this.#select.title = instrument.symbol;
    this.#cells.symbol.append(this.#select);
    this.#remove = button("drop", "×", `Remove ${instrument.symbol} from the list`);
    this.#cells.remove.append(this.#remove);
    this.#path = drawing(this.#cells.trend);
  }

  /** @param {boolean} isSelected whether the chart shows this symbol, and the row takes the focus */
  setSelected(isSelected) {
    if (isSelected) this.element.setAttribute("aria-current", "true");
    else this.element.removeAttribute("aria-current");
    // Only one row is a stop of the Tab key; the arrow keys move to the others.
    this.#select.tabIndex = this.#remove.tabIndex = isSelected ? 0 : -1;
  }

  focus() {
    this.#select.focus({ preventScroll: true });
    this.element.scrollIntoView({ block: "nearest" });
  }

  /** Report the visible texts. */
  addTexts(columns) {
    for (const name of FIGURES) columns.add(name, this.#shown[name] ?? "");
  }

  /** @param {import("./tables.js").Columns} columns receives the texts */
  draw(market, now, columns) {
    this.#columns = columns;
    const { instrument } = this;
    instrument.forgetOutdated(now);
    const { decimals } = instrument;
    const change = format.change(instrument.change);
    this.#write("last", format.price(instrument.last, decimals));
    this.#write("change", change);
    this.#write("bid", format.price(instrument.bid, decimals));
    this.#write("ask", format.price(instrument.ask, decimals));
    this.#write(
      "spread",
      // For a price with many decimals, a spread in its unit would be too long to read.
      decimals > 4
        ? format.basisPoints(instrument.relativeSpread)
        : format.price(instrument.spread, decimals),
    );
    this.#drawVolume(instrument);
    this.#write("rate", format.rate(instrument.rate.read(now)));
    mark(this.element, "move", { "+": "up", "−": "down" }[change[0]] ?? "");
    this.#flash(now);
    if (now - this.#trendAt >= TREND_EVERY_MS) {
      this.#trendAt = now;
      market.advance(instrument, now);
      this.#path.setAttribute("d", outline(instrument.trend));
    }
  }

  #drawVolume({ volume, incomplete }) {
    if (this.#volume === volume && this.#incomplete === incomplete) return;
    this.#volume = volume;
    this.#incomplete = incomplete;
    const least = incomplete ? "≥" : "";
    this.#write("volume", least + format.volume(volume));
    this.#cells.volume.title = least + format.exactVolume(volume);
  }

  /** Colour the price for a moment when it moves. */
  #flash(now) {
    const { last } = this.instrument;
    if (now >= this.#flashUntil) mark(this.#cells.last, "flash", "");
    if (this.#last !== undefined && last !== this.#last) {
      mark(this.#cells.last, "flash", last > this.#last ? "up" : "down");
      this.#flashUntil = now + FLASH_MS;
    }
    this.#last = last;
  }

  #write(name, text) {
    if (this.#shown[name] === text) return;
    this.#shown[name] = text;
    this.#columns.add(name, text);
    this.#texts[name].data = text;
  }
}

function mark(element, name, value) {
  if ((element.dataset[name] ?? "") !== value) element.dataset[name] = value;
}

function button(name, text, label) {
  const element = document.createElement("button");
  element.type = "button";
  element.className = name;
  element.textContent = text;
  element.tabIndex = -1;
  element.setAttribute("aria-label", label);
  return element;
}

function drawing(cell) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${TREND_POINTS - 1} ${TREND_HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  svg.append(path);
  cell.append(svg);
  return path;
}

/** The line through a trend, with a break at every hole; a trend of less than a minute is stretched. */
function outline(trend) {
  const points = [...trend];
  const first = points.findIndex((price) => !Number.isNaN(price));
  const stretch = (points.length - 1) / Math.max(points.length - 1 - first, TREND_MIN_POINTS);
  let low = Infinity;
  let high = -Infinity;
  for (const price of points) {
    if (price < low) low = price;
    if (price > high) high = price;
  }
  const range = Math.max(high - low, high * TREND_MIN_RANGE) || 1;
  const middle = (high + low) / 2;
  const inner = TREND_HEIGHT - 4;
  let path = "";
  let drawn = false;
  points.forEach((price, at) => {
    const known = !Number.isNaN(price);
    if (known) {
      const y = TREND_HEIGHT / 2 - ((price - middle) / range) * inner;
      const x = points.length - 1 - (points.length - 1 - at) * stretch;
      path += `${drawn ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    }
    drawn = known;
  });
  return path;
}
