/** The table of symbols. Draws only what is in view, and writes only what has changed. */

import * as format from "./format.js";
import { TREND_POINTS } from "./market.js";

const SVG = "http://www.w3.org/2000/svg";
const TREND_HEIGHT = 24;
const TREND_EVERY_MS = 500;
/** Less than this part of the price is drawn as small as it is. */
const TREND_LEAST_RANGE = 0.0002;
/** No fade behind it: a hundred of them would keep the browser painting without a pause. */
const FLASH_MS = 350;
const COLUMNS = ["symbol", "last", "change", "trend", "bid", "ask", "spread", "volume", "rate", "age"];
const order = new Intl.Collator("en", { numeric: true }).compare;

/** One table row and what it shows at the moment. */
class Row {
  visible = false;
  #cells = {};
  #shown = {};
  #path;
  #last = undefined;
  #flashUntil = 0;
  #trendAt = -Infinity;

  constructor(instrument) {
    this.instrument = instrument;
    this.element = document.createElement("tr");
    for (const name of COLUMNS) {
      const cell = document.createElement(name === "symbol" ? "th" : "td");
      cell.className = name;
      this.element.append(cell);
      this.#cells[name] = cell;
    }
    this.#cells.symbol.scope = "row";
    this.#cells.symbol.textContent = this.#cells.symbol.title = instrument.symbol;
    this.#path = drawing(this.#cells.trend);
  }

  draw(market, now) {
    const { instrument } = this;
    const { decimals } = instrument;
    const change = format.change(instrument.change);
    this.#write("last", format.price(instrument.last, decimals));
    this.#write("change", change);
    this.#write("bid", format.price(instrument.bid, decimals));
    this.#write("ask", format.price(instrument.ask, decimals));
    this.#write(
      "spread",
      // Of a price with many decimals a spread in its unit would be too long to read.
      decimals > 4
        ? format.basisPoints(instrument.relativeSpread)
        : format.price(instrument.spread, decimals),
    );
    this.#write("volume", (instrument.missed ? "≥" : "") + format.size(instrument.volume));
    this.#write("rate", format.rate(instrument.rate.read(now)));
    this.#write("age", format.age(now - instrument.seenAt));
    this.#mark(this.element, "move", { "+": "up", "−": "down" }[change[0]] ?? "");
    this.#flash(now);
    if (now - this.#trendAt >= TREND_EVERY_MS) {
      this.#trendAt = now;
      market.advance(instrument, now);
      this.#path.setAttribute("d", outline(instrument.trend));
    }
  }

  /** Colour the price for a moment where it moved. */
  #flash(now) {
    const { last } = this.instrument;
    if (now >= this.#flashUntil) this.#mark(this.#cells.last, "flash", "");
    if (this.#last !== undefined && last !== this.#last) {
      this.#mark(this.#cells.last, "flash", last > this.#last ? "up" : "down");
      this.#flashUntil = now + FLASH_MS;
    }
    this.#last = last;
  }

  #write(name, text) {
    if (this.#shown[name] === text) return;
    this.#shown[name] = text;
    this.#cells[name].textContent = text;
  }

  #mark(element, name, value) {
    if ((element.dataset[name] ?? "") !== value) element.dataset[name] = value;
  }
}

/** The rows, sorted by symbol. */
export class Table {
  #body;
  #rows = new Map();
  #byElement = new WeakMap();
  #passes = () => true;
  #observer;

  /**
   * @param {HTMLTableSectionElement} body
   */
  constructor(body) {
    this.#body = body;
    this.#observer = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          this.#byElement.get(entry.target).visible = entry.isIntersecting;
        }
      },
      { rootMargin: "120px" },
    );
  }

  /**
   * Show the symbols that pass, and hide the others.
   *
   * @param {(symbol: string) => boolean} passes
   * @returns {number} how many there are
   */
  filter(passes) {
    this.#passes = passes;
    let shown = 0;
    for (const row of this.#rows.values()) {
      row.element.hidden = !passes(row.instrument.symbol);
      if (!row.element.hidden) shown += 1;
    }
    return shown;
  }

  /**
   * @param {import("./market.js").Market} market
   * @param {number} now
   */
  draw(market, now) {
    if (market.instruments.size !== this.#rows.size) this.#addRows(market);
    for (const row of this.#rows.values()) {
      if (row.visible && !row.element.hidden) row.draw(market, now);
    }
  }

  #addRows(market) {
    for (const [symbol, instrument] of market.instruments) {
      if (this.#rows.has(symbol)) continue;
      const row = new Row(instrument);
      row.element.hidden = !this.#passes(symbol);
      this.#rows.set(symbol, row);
      this.#byElement.set(row.element, row);
      this.#observer.observe(row.element);
    }
    const sorted = [...this.#rows.keys()].sort(order);
    this.#body.replaceChildren(...sorted.map((symbol) => this.#rows.get(symbol).element));
  }
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

/** The line through a trend, with a break at every hole. */
function outline(trend) {
  const points = [...trend];
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
      path += `${drawn ? "L" : "M"}${at} ${y.toFixed(1)}`;
    }
    drawn = known;
  });
  return path;
}
