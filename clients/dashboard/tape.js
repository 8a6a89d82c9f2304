/** The latest trades of the selected symbol, newest on top. */

import { Columns } from "./columns.js";
import * as format from "./format.js";

const ROWS_MAX = 40;
const EVERY_MS = 200;
const COLUMNS = [
  { name: "time", weight: 34 },
  { name: "price", weight: 25 },
  { name: "size", weight: 25, rank: 1 },
  { name: "side", weight: 16, rank: 2 },
];
const SIDES = { B: ["Buy", "up"], S: ["Sell", "down"] };

/** A fixed set of rows whose text moves down. */
export class Tape {
  #body;
  #note;
  #columns;
  #rows = [];
  #drawn = -1;
  #symbol = "";
  #drawnAt = -Infinity;

  /**
   * @param {HTMLTableSectionElement} body
   * @param {HTMLElement} note shown while there are no trades
   */
  constructor(body, note) {
    this.#body = body;
    this.#note = note;
    this.#columns = new Columns(body.closest(".pane"), COLUMNS);
  }

  /**
   * @param {import("./chosen.js").Chosen} chosen
   * @param {number} decimals of its prices
   * @param {number} now
   */
  draw(chosen, decimals, now) {
    const same = chosen.symbol === this.#symbol;
    this.#columns.fit();
    if (!same) this.#columns.reset();
    // Slower than the chart: users can't read lines that move too often.
    if (same && (chosen.traded === this.#drawn || now - this.#drawnAt < EVERY_MS)) return;
    this.#symbol = chosen.symbol;
    this.#drawn = chosen.traded;
    this.#drawnAt = now;
    const trades = chosen.recent.slice(-ROWS_MAX).reverse();
    while (this.#rows.length < trades.length) this.#addRow();
    this.#rows.forEach((row, at) => this.#fill(row, trades[at], decimals));
    this.#note.hidden = trades.length > 0;
  }

  #addRow() {
    const element = document.createElement("tr");
    const texts = COLUMNS.map(({ name }) => {
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
      this.#columns.add(COLUMNS[at].name, text);
      if (row.texts[at].data !== text) row.texts[at].data = text;
    });
  }
}
