/** The page: ties the connection, the market and what is drawn together. */

import { connect } from "./feed.js";
import * as format from "./format.js";
import { Market } from "./market.js";
import { Table } from "./table.js";
import { Tape } from "./tape.js";

const DRAW_EVERY_MS = 125;
const RATE_EVERY_MS = 1000;
const DEFAULT_FEED = "live";
const FEED_NAME = /^[a-z0-9_-]{1,32}$/;
const WORDS = {
  connecting: "Connecting",
  connected: "Connected",
  reconnecting: "Reconnecting",
  refused: "Refused",
  closed: "Disconnected",
};

const part = (id) => document.getElementById(id);
const market = new Market();
const table = new Table(part("rows"));
const tape = new Tape(part("tape"), part("tape-note"));

let state = { name: "connecting", reason: "" };
let lostAt = "";
let paused = false;
let filter = "";
let matching = 0;
let filtered = -1;
let rateAt = -Infinity;

// -- the connection

function start() {
  const feed = new URLSearchParams(location.search).get("feed") || DEFAULT_FEED;
  part("feed-name").textContent = feed;
  document.title = feed === DEFAULT_FEED ? "Tickcast" : `${feed} – Tickcast`;
  if (!FEED_NAME.test(feed)) {
    showState({ name: "closed", reason: "a feed's name is 1 to 32 of a-z 0-9 _ -" });
    return;
  }
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const path = feed === DEFAULT_FEED ? "/stream" : `/v2/${feed}`;
  connect(`${scheme}://${location.host}${path}`, {
    onTick: (tick) => market.take(tick, performance.now()),
    onNotice: (notice) => market.notice(notice),
    onState: showState,
  }).subscribe({ trades: ["*"], quotes: ["*"] }, { snapshot: true });
}

function showState(next) {
  if (state.name === "connected" && next.name !== "connected") {
    lostAt = new Date().toISOString().slice(11, 19);
  }
  state = next;
  const live = state.name === "connected";
  market.setLive(live, performance.now());
  const chip = part("state");
  if (chip.textContent !== WORDS[state.name]) chip.textContent = WORDS[state.name];
  chip.dataset.state = state.name;
  part("main").dataset.stale = String(!live && market.instruments.size > 0);
  part("banner").textContent = bannerText();
  part("banner").dataset.state = state.name;
  part("banner").hidden = live || (state.name === "connecting" && !state.reason);
}

function bannerText() {
  const reason = state.reason ? ` (${state.reason})` : "";
  const old = lostAt ? ` What you see is from before ${lostAt} UTC.` : "";
  if (state.name === "refused") return `The server refused the subscription${reason}.${old}`;
  if (state.name === "closed") return `Disconnected${reason}. Reload the page to try again.${old}`;
  if (state.name === "connecting") return `Can't connect yet${reason}. Trying again.`;
  return `Connection lost${reason}. Trying again.${old}`;
}

// -- drawing

function drawAndWait() {
  if (!paused) draw(performance.now());
  // A timer before each frame: no need to wake up for the frames in between.
  setTimeout(() => requestAnimationFrame(drawAndWait), DRAW_EVERY_MS);
}

function draw(now) {
  const size = market.instruments.size;
  table.draw(market, now);
  tape.draw(market, now);
  if (size !== filtered) applyFilter();
  if (now - rateAt >= RATE_EVERY_MS) {
    rateAt = now;
    write("rate", format.rate(market.rate.read(now)));
    write("missed", format.count(market.missed));
    part("missed-box").hidden = market.missed === 0;
  }
  const total = format.count(size) + (market.overfull ? "+" : "");
  write("symbols", filter ? `${format.count(matching)} of ${total}` : total);
  drawNote(size);
}

function drawNote(size) {
  const note = part("note");
  let text = "";
  if (size === 0 && state.name === "connected") {
    text = "No ticks yet. Publish some: ";
  } else if (size > 0 && matching === 0) {
    text = `No symbol contains “${filter}”.`;
  } else if (market.overfull) {
    text = `Only the first ${format.count(size)} symbols are shown.`;
  }
  if (note.dataset.text === text) return;
  note.dataset.text = text;
  note.textContent = text;
  note.hidden = !text;
  if (size === 0 && text) {
    const command = document.createElement("code");
    const feed = part("feed-name").textContent;
    command.textContent = feed === DEFAULT_FEED ? "tickcast synth" : `tickcast synth --feed ${feed}`;
    note.append(command);
  }
}

function write(id, text) {
  const element = part(id);
  if (element.textContent !== text) element.textContent = text;
}

// -- what people do

function applyFilter() {
  const passes = (symbol) => symbol.toUpperCase().includes(filter);
  filtered = market.instruments.size;
  matching = table.filter(passes);
  tape.filter(passes, filter !== "");
}

part("filter").addEventListener("input", (event) => {
  filter = event.target.value.trim().toUpperCase();
  applyFilter();
  draw(performance.now());
});

part("pause").addEventListener("click", () => {
  paused = !paused;
  part("pause").setAttribute("aria-pressed", String(paused));
});

document.addEventListener("keydown", (event) => {
  const field = part("filter");
  if (event.key === "Escape" && event.target === field && field.value) {
    field.value = "";
    field.dispatchEvent(new Event("input"));
    event.preventDefault();
  } else if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey) {
    if (event.target === field) return;
    event.preventDefault();
    field.focus();
    field.select();
  }
});

start();
drawAndWait();
