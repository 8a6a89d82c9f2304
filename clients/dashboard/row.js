/** One row of the watchlist. Writes only what has changed. */

import * as format from "./format.js";
import { TREND_POINTS } from "./rates.js";

const SVG = "http://www.w3.org/2000/svg";
const TREND_HEIGHT = 24;
const TREND_EVERY_MS = 1000;
/** Fewer points don't fill the width. */
const TREND_LEAST_POINTS = 20;
/** Moves below this fraction of the price are not enlarged. */
const TREND_LEAST_RANGE = 0.0002;
/** Without a fade: a hundred of them would keep the browser painting continuously. */
const FLASH_MS = 350;
const COLUMNS = ["symbol", "last", "change", "trend", "bid", "ask", "spread", "volume", "rate", "remove"];
const FIGURES = ["last", "change", "bid", "ask", "spread", "volume", "rate"];

export class Row {
  /** Whether the browser draws the row; assumed until it reports otherwise. */
  isInSight = true;
  #cells = {};
  #texts = {};
  #shown = {};
  #columns = undefined;
  #path;
  #pick;
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
    this.element.addEventListener("contentvisibilityautostatechange", ({ skipped }) => (this.isInSight = !skipped));
    for (const name of COLUMNS) {
      const cell = document.createElement(name === "symbol" ? "th" : "td");
      cell.className = name;
      this.element.append(cell);
      this.#cells[name] = cell;
    }
    // Changing the text of a node is cheaper than replacing the nodes of a cell.
    for (const name of FIGURES) this.#cells[name].append((this.#texts[name] = new Text()));
    this.#cells.symbol.scope = "row";
    this.#pick = button("pick", instrument.symbol, `Show ${instrument.symbol}`);
    this.#pick.title = instrument.symbol;
    this.#cells.symbol.append(this.#pick);
    this.#remove = button("drop", "×", `Remove ${instrument.symbol} from the list`);
    this.#cells.remove.append(this.#remove);
    this.#path = drawing(this.#cells.trend);
  }

  /** @param {boolean} chosen whether the chart shows this symbol, and the row takes the focus */
  choose(chosen) {
    if (chosen) this.element.setAttribute("aria-current", "true");
    else this.element.removeAttribute("aria-current");
    // Only one row is a stop of the Tab key; the arrow keys move to the others.
    this.#pick.tabIndex = this.#remove.tabIndex = chosen ? 0 : -1;
  }

  focus() {
    this.#pick.focus({ preventScroll: true });
    this.element.scrollIntoView({ block: "nearest" });
  }

  /** Report the visible texts. */
  measure(columns) {
    for (const name of FIGURES) columns.add(name, this.#shown[name] ?? "");
  }

  /** @param {import("./columns.js").Columns} columns receives the texts */
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
  const stretch = (points.length - 1) / Math.max(points.length - 1 - first, TREND_LEAST_POINTS);
  let low = Infinity;
  let high = -Infinity;
  for (const price of points) {
    if (price < low) low = price;
    if (price > high) high = price;
  }
  const range = Math.max(high - low, high * TREND_LEAST_RANGE) || 1;
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
