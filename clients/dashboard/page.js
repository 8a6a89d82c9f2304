/** The page: ties the connections, the market and what is drawn together. */

import { SYMBOLS_MAX, TIMEFRAMES, isFeed, isSymbol, queryOf, readView } from "./address.js";
import { Chart } from "./chart.js";
import { Chosen } from "./chosen.js";
import { listenToField, listenToKeys, oneOf } from "./controls.js";
import { Credentials, asksForCredentials } from "./credentials.js";
import { frameInterval, onFrames } from "./frames.js";
import { Market } from "./market.js";
import { bannerOf } from "./notices.js";
import { Panel, WORDS, write } from "./panel.js";
import { Passes } from "./passes.js";
import { showQuote, showTitle } from "./quote.js";
import { ReplayBar } from "./replay.js";
import { DRAW_EVERY_MS, Table } from "./table.js";
import { Tape } from "./tape.js";
import { Watch } from "./watch.js";

/** A chart that moves thirty times a second looks smooth, and costs half of one at sixty. */
const FRAMES_PER_DRAW = 2;
const SLOWLY_EVERY_MS = 250;
/** The error of what may not be done here. */
const NOT_HERE = 410;
const part = (id) => document.getElementById(id);

const view = readView(location.search);
const market = new Market();
const table = new Table(part("rows"));
const tape = new Tape(part("tape"), part("tape-note"));
const panel = new Panel();
const replayBar = new ReplayBar((message) => watch.stream.say(message));
const passes = new Passes();
const credentials = new Credentials(() => location.reload());
const facts = { state: { name: "connecting", reason: "", code: 0 }, refused: "", lostAt: "", lagMs: 0, replay: undefined };
let slowAt = -Infinity;
let slowlyAt = -Infinity;
let filter = "";
let isLetIn = false;
let chart;
let watch;
let chosen;

// -- the connections

async function start() {
  document.documentElement.dataset.theme = view.theme;
  part("feed-name").textContent = view.feed;
  if (!isFeed(view.feed)) {
    facts.state = { name: "closed", reason: "a feed's name is 1 to 32 of a-z 0-9 _ -", code: 0 };
    showState();
    return;
  }
  chart = new Chart(part("chart"), part("legend"));
  chart.setStep(TIMEFRAMES[view.timeframe]);
  const frameMs = await frameInterval();
  const drawMs = FRAMES_PER_DRAW * frameMs;
  const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v2/${view.feed}`;
  const { encoding } = view;
  const { token, headers } = credentials;
  const handlers = { onTick: takeTick, onGap: takeGap, onNotice: takeNotice, onState: takeState, onRefused: takeRefusal };
  watch = new Watch(url, handlers, { encoding, conflateMs: DRAW_EVERY_MS, token });
  const ofChosen = { onState: takeStateOfChosen, onRefused: takeRefusal, onRestart: () => chart.restart() };
  chosen = new Chosen(url, latestOf, ofChosen, { encoding, conflateMs: Math.round(drawMs), token, headers });
  write("frame", `${Math.round(1000 / frameMs)} frames/s; quotes at most every ${DRAW_EVERY_MS} ms, of the chart every ${Math.ceil(drawMs / 10) * 10} ms`);
  for (const symbol of view.symbols ?? []) market.instrument(symbol);
  watch.show(view.symbols);
  showView();
  // For those who look from the console, and for the tests.
  globalThis.tickcast = { market, watch, chosen, chart };
  onFrames(draw, drawMs);
}

const latestOf = (symbol) => `/snapshot?feed=${view.feed}&symbols=${encodeURIComponent(symbol)}`;

function takeTick(tick) {
  const now = performance.now();
  // A symbol that was removed may still have ticks under way.
  if (view.symbols && !market.instruments.has(tick.S)) return;
  market.take(tick, now);
  panel.time(tick, now);
}

function takeGap(gap) {
  if (passes.takeGap(gap)) market.instruments.get(gap.S)?.restart(gap.ch);
  else market.gap(gap);
  if (gap.reason === "skipped") slowAt = performance.now();
}

function takeNotice(notice) {
  if (notice.T === "heartbeat") facts.lagMs = notice.lag_ms;
  else if (notice.T === "replay" && notice.id === undefined) takeReplay(notice);
  else if (notice.T === "configured") letIn();
  else if (notice.T === "error" && notice.code === NOT_HERE && notice.id === undefined) {
    replayBar.refuse(notice.msg.slice(notice.msg.indexOf(": ") + 1).trim());
  }
}

/** Not before the server has answered: it might ask for credentials first. */
function letIn() {
  if (!isLetIn && view.symbol) choose(view.symbol);
  isLetIn = true;
}

function takeReplay(state) {
  facts.replay = state;
  replayBar.take(state, performance.now());
  market.restart(passes.takeState(state));
}

function takeRefusal(error) {
  if (facts.state.name !== "closed") facts.refused = `The server refused what this page needs (${error.message}).`;
}

function takeState(next) {
  if (isLetIn && facts.state.name === "connected") facts.lostAt = new Date().toISOString().slice(11, 19);
  facts.state = next;
  facts.lagMs = 0;
  showState();
  if (next.name === "connected") replayBar.allow();
  if (next.name !== "closed" || !asksForCredentials(next.code)) return;
  chosen?.stream.close();
  credentials.ask(next.code);
}

function takeStateOfChosen({ name, reason, code }) {
  if (name === "closed" && code) takeRefusal(new Error(reason));
}

function showState() {
  const { name } = facts.state;
  market.setLive(name === "connected", performance.now());
  write("state", WORDS[name]);
  part("state").dataset.state = part("panel-state").dataset.state = name;
  write("panel-state", WORDS[name]);
  part("main").dataset.stale = String(name !== "connected" && market.instruments.size > 0);
  showBanner(performance.now());
}

// -- drawing

function draw(now) {
  const isDrawn = table.draw(market, now);
  if (isLetIn && !view.symbol && table.shown.length) choose(table.shown[0]);
  const instrument = market.instruments.get(chosen.symbol);
  const decimals = instrument?.decimals ?? 2;
  // Together with its row, so that both say the same.
  if (isDrawn) showQuote(chosen, instrument);
  write("chart-note", chosen.symbol ? "No trades of this symbol are kept." : "");
  part("chart-note").hidden = chart.draw(chosen.candles, decimals);
  tape.draw(chosen, decimals, now);
  panel.draw(watch.stream, chosen.stream, facts.state, now);
  replayBar.draw(now, facts.state.name === "connected");
  if (now - slowlyAt < SLOWLY_EVERY_MS) return;
  slowlyAt = now;
  showTitle(chosen.symbol, instrument);
  showBanner(now);
  showList();
  watch.ease(market.trades.read(now));
}

function showBanner(now) {
  const eased = watch?.eased ?? false;
  const silentMs = watch?.stream.silentMs ?? 0;
  const banner = bannerOf({ ...facts, eased, silentMs, quietMs: now - market.tickAt, slowMs: now - slowAt });
  part("banner").hidden = !banner;
  part("banner").dataset.tone = banner?.tone ?? "";
  write("banner", banner?.text ?? "");
}

function showList() {
  const total = market.instruments.size;
  const shown = filter ? table.shown.length : total;
  write("symbols", filter ? `${shown} of ${total}` : `${total}${market.overfull ? "+" : ""}`);
  part("keep").hidden = !filter || view.symbols !== null || shown === 0 || shown > SYMBOLS_MAX;
  part("all").hidden = view.symbols === null;
  let note = "";
  if (total === 0 && facts.state.name === "connected") note = "No ticks yet. The command “tickcast synth” makes some.";
  else if (total > 0 && shown === 0) note = view.symbols ? "Enter adds it to the list." : "No such symbol has been published.";
  part("note").hidden = !note;
  write("note", note);
}

// -- what people do

function showView() {
  history.replaceState(null, "", location.pathname + queryOf(view));
  showEncoding(view.encoding);
  showTimeframe(view.timeframe);
  table.setSort(view.sort);
}

function choose(symbol) {
  view.symbol = symbol;
  table.choose(symbol);
  chosen.show(symbol, TIMEFRAMES[view.timeframe]);
  showQuote(chosen, market.instruments.get(symbol));
  showView();
}

function step(by) {
  const symbols = table.shown;
  if (!symbols.length) return;
  const at = symbols.indexOf(view.symbol);
  const next = symbols[Math.min(Math.max(at + by, 0), symbols.length - 1)];
  choose(next);
  table.focus(next);
}

function setSymbols(symbols) {
  view.symbols = symbols;
  for (const symbol of symbols ?? []) market.instrument(symbol);
  for (const symbol of market.instruments.keys()) {
    if (symbols && !symbols.includes(symbol)) market.forget(symbol);
  }
  watch.show(symbols);
  if (symbols?.length && !symbols.includes(view.symbol)) choose(symbols[0]);
  showView();
}

function remove(symbol) {
  const symbols = (view.symbols ?? [...market.instruments.keys()]).filter((each) => each !== symbol);
  if (symbols.length > SYMBOLS_MAX) facts.refused = `A list of your own holds ${SYMBOLS_MAX} symbols at most.`;
  else setSymbols(symbols);
}

function enter(text) {
  const symbol = [text, text.toUpperCase()].find((each) => market.instruments.has(each));
  const first = [...market.instruments.keys()].sort().find((each) => each.includes(text.toUpperCase()));
  if (symbol) choose(symbol);
  else if (view.symbols && isSymbol(text) && view.symbols.length < SYMBOLS_MAX) add(text);
  else if (first) choose(first);
}

function add(text) {
  const known = [...part("known").options].map(({ value }) => value);
  const symbol = known.includes(text) || !known.includes(text.toUpperCase()) ? text : text.toUpperCase();
  setSymbols([...view.symbols, symbol]);
  choose(symbol);
}

function setFilter(text) {
  filter = text;
  table.setFilter(text);
  showList();
}

function setTimeframe(timeframe) {
  view.timeframe = timeframe;
  chart.setStep(TIMEFRAMES[timeframe]);
  if (view.symbol) choose(view.symbol);
  showView();
}

function setEncoding(encoding) {
  view.encoding = watch.stream.encoding = chosen.stream.encoding = encoding;
  showView();
}

function switchTheme() {
  const isDark = getComputedStyle(document.body).colorScheme === "dark" || (!view.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  view.theme = isDark ? "light" : "dark";
  document.documentElement.dataset.theme = view.theme;
  chart.recolour();
  showView();
}

function switchQuotes() {
  const shown = part("quotes").getAttribute("aria-pressed") !== "true";
  part("quotes").setAttribute("aria-pressed", String(shown));
  chart.showQuotes(shown);
}

/** What can be added, when somebody is about to. */
async function suggest() {
  if (!view.symbols) return;
  const reply = await fetch(`/symbols?feed=${view.feed}`, { headers: credentials.headers });
  const options = (await reply.json()).slice(0, 2000).map(({ S }) => new Option(S, S));
  part("known").replaceChildren(...options);
}

const showEncoding = oneOf(part("encoding"), setEncoding);
const showTimeframe = oneOf(part("timeframe"), setTimeframe);
listenToField(part("search"), { filter: setFilter, enter });
listenToKeys({
  "/": () => part("search").focus(),
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
  Delete: () => remove(view.symbol),
  " ": () => replayBar.toggle(),
  q: switchQuotes,
  t: switchTheme,
  ...Object.fromEntries(Object.keys(TIMEFRAMES).map((each, at) => [at + 1, () => setTimeframe(each)])),
});
part("search").addEventListener("focus", () => suggest().catch(() => {}));
part("theme").addEventListener("click", switchTheme);
part("quotes").addEventListener("click", switchQuotes);
part("keep").addEventListener("click", () => setSymbols(table.shown));
part("all").addEventListener("click", () => setSymbols(null));
part("rows").addEventListener("click", ({ target }) => {
  const symbol = target.closest("tr").dataset.symbol;
  if (target.closest(".drop")) remove(symbol);
  else choose(symbol);
});
table.listenToHead((sort) => {
  view.sort = sort;
  showView();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart?.recolour());
start();
