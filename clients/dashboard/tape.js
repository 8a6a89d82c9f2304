/** The latest trades, newest on top. */

import * as format from "./format.js";

const ROWS_MAX = 30;
const EVERY_MS = 250;
const COLUMNS = ["time", "symbol", "side", "price", "size"];
const SIDES = { B: ["Buy", "up"], S: ["Sell", "down"] };

/** A fixed set of rows whose text moves down. */
export class Tape {
  #body;
  #note;
  #rows = [];
  #passes = () => true;
  #filtered = false;
  #drawn = -1;
  #drawnAt = -Infinity;

  /**
   * @param {HTMLTableSectionElement} body
   * @param {HTMLElement} note shown while there are no trades
   */
  constructor(body, note) {
    this.#body = body;
    this.#note = note;
  }

  /**
   * @param {(symbol: string) => boolean} passes
   * @param {boolean} some whether it leaves anything out
   */
  filter(passes, some) {
    this.#passes = passes;
    this.#filtered = some;
    this.#drawn = -1;
  }

  /**
   * @param {import("./market.js").Market} market
   * @param {number} now
   */
  draw(market, now) {
    // Slower than the table: lines that move too often can't be read.
    if (market.traded === this.#drawn || now - this.#drawnAt < EVERY_MS) return;
    this.#drawn = market.traded;
    this.#drawnAt = now;
    const trades = market.latestTrades(ROWS_MAX, this.#passes);
    while (this.#rows.length < trades.length) this.#addRow();
    this.#rows.forEach((row, at) => this.#fill(row, trades[at]));
    this.#note.hidden = trades.length > 0;
    this.#note.textContent = this.#filtered
      ? "No recent trade passes the filter."
      : "No trades since this page was opened.";
  }

  #addRow() {
    const element = document.createElement("tr");
    const cells = COLUMNS.map((name) => {
      const cell = document.createElement("td");
      cell.className = name;
      return cell;
    });
    element.append(...cells);
    this.#body.append(element);
    this.#rows.push({ element, cells, trade: undefined });
  }

  #fill(row, trade) {
    row.element.hidden = !trade;
    if (!trade || trade === row.trade) return;
    row.trade = trade;
    const [side, move] = SIDES[trade.side] ?? ["–", ""];
    row.element.dataset.move = move;
    [
      format.timeOfDay(trade.time),
      trade.symbol,
      side,
      format.price(trade.price, trade.instrument.decimals),
      format.size(trade.size),
    ].forEach((text, at) => {
      if (row.cells[at].textContent !== text) row.cells[at].textContent = text;
    });
  }
}
