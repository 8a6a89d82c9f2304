/** The page: connects the connections, the market and everything that draws. */

import { SYMBOLS_MAX, TIMEFRAMES, isFeed, isSymbol, queryOf, readView } from "./address.js";
import { Chart } from "./chart.js";
import { ChartConnection, ListConnection } from "./connections.js";
import { byId, frameInterval, onFrames, write } from "./dom.js";
import { Credentials, bindField, bindGroup, bindKeys } from "./input.js";
import { Market } from "./market.js";
import { Panel, STATE_NAMES, showQuote, showTitle } from "./panel.js";
import { ReplayBar, ReplayMoves } from "./replay.js";
import { StreamLag, bannerOf, needsCredentials, pageState } from "./status.js";
import { TradeTable } from "./tables.js";
import { DRAW_EVERY_MS, Watchlist } from "./watchlist.js";

/** A chart that moves thirty times a second looks smooth, and costs half as much as at sixty. */
const FRAMES_PER_DRAW = 2;
const STATE_EVERY_MS = 250;
const REMARK_MS = 8_000;
const SUGGESTIONS_MAX = 2_000;
/** A browser does not say why a server refuses a connection, so the page asks after this long. */
const PROBE_AFTER_MS = 1_500;
const NOT_FOUND = 404;
/** The code of the error for actions that are not allowed here. */
const INVALID_ACTION = 410;
/** An address of the server, which may be below a prefix that a proxy strips. */
const urlOf = (path) => new URL(path, document.baseURI);

const view = readView(location.search);
const market = new Market();
const watchlist = new Watchlist(byId("rows"));
const trades = new TradeTable(byId("trades"), byId("trades-note"));
const panel = new Panel();
const replayBar = new ReplayBar((message) => list.stream.send(message));
const replayMoves = new ReplayMoves();
const credentials = new Credentials(() => location.reload());
const CONNECTING = { name: "connecting", reason: "", code: 0 };
/** Each connection's state, the delay that the server reports on it, and how far it is behind the other. */
const connections = {
  list: { state: CONNECTING, serverLagMs: 0, streamLag: new StreamLag(), behindMs: 0 },
  chart: { state: CONNECTING, serverLagMs: 0, streamLag: new StreamLag(), behindMs: 0 },
};
/** What the banner depends on. */
const facts = {
  state: { ...CONNECTING, isListLive: false, isChartLive: false },
  feed: view.feed,
  feedFault: "",
  refused: "",
  lostAt: "",
  ageMs: 0,
  silentMs: 0,
  replay: undefined,
};
let skippedAt = -Infinity;
let stateShownAt = -Infinity;
let remarkedAt = -Infinity;
let filter = "";
/** Whether the server has answered, and not asked for credentials. */
let isAdmitted = false;
let chart;
/** The watchlist's connection, and the selected symbol's. */
let list;
let selected;

// -- the connections

async function start() {
  document.documentElement.dataset.theme = view.theme;
  byId("feed-name").textContent = view.feed;
  if (!isFeed(view.feed)) {
    endWith("malformed");
    return;
  }
  chart = new Chart(byId("chart"), byId("legend"));
  chart.setStep(TIMEFRAMES[view.timeframe]);
  const frameMs = await frameInterval();
  const drawMs = FRAMES_PER_DRAW * frameMs;
  const url = urlOf(`v2/${view.feed}`);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const { encoding } = view;
  const { token, headers } = credentials;
  const listHandlers = {
    onTick: addTick,
    onGap: addGap,
    onNotice: processNotice,
    onState: (state) => setState("list", state),
    onRefused: showRefusal,
  };
  list = new ListConnection(url.href, listHandlers, { encoding, conflateMs: DRAW_EVERY_MS, token });
  const chartHandlers = {
    onTick: (tick) => panel.countTick(tick, performance.now()),
    onNotice: (notice) => processHeartbeat("chart", notice),
    onState: (state) => setState("chart", state),
    onRefused: showRefusal,
    onRestart: () => chart.restart(),
  };
  const chartOptions = { encoding, conflateMs: Math.round(drawMs), token, headers };
  selected = new ChartConnection(url.href, snapshotUrl, chartHandlers, chartOptions);
  const chartMs = Math.ceil(drawMs / 10) * 10;
  write("frame", `${Math.round(1000 / frameMs)} frames/s; quotes at most every ${DRAW_EVERY_MS} ms, ${chartMs} ms in the chart`);
  for (const symbol of view.symbols ?? []) market.instrument(symbol);
  list.show(view.symbols);
  showView();
  // For the console of the browser, and for the tests.
  globalThis.tickcast = { market, list, selected, chart, facts };
  onFrames(draw, drawMs);
  setTimeout(probeFeed, PROBE_AFTER_MS);
}

const snapshotUrl = (symbol) => urlOf(`snapshot?feed=${view.feed}&symbols=${encodeURIComponent(symbol)}`);

/** Check whether the feed exists. */
async function probeFeed() {
  if (isAdmitted || connections.list.state.name !== "connecting") return;
  const reply = await fetch(urlOf(`v2/${view.feed}`)).catch(() => undefined);
  if (reply?.status === NOT_FOUND && !isAdmitted) endWith("unknown");
}

function streams() {
  return [list, selected].flatMap((connection) => connection?.stream ?? []);
}

function closeStreams() {
  for (const stream of streams()) stream.close();
}

/** Report that this feed can't be shown. */
function endWith(feedFault) {
  facts.feedFault = feedFault;
  closeStreams();
  for (const each of Object.values(connections)) each.state = { name: "closed", reason: "", code: 0 };
  showState(performance.now());
}

function addTick(tick) {
  const now = performance.now();
  replayMoves.addTick(tick);
  // Ticks of a symbol that was removed may still be on the way.
  if (view.symbols && !market.instruments.has(tick.S)) return;
  market.addTick(tick, now);
  panel.addDelay(tick, now);
  panel.countTick(tick, now);
}

function addGap(gap) {
  const now = performance.now();
  if (replayMoves.addGap(gap)) market.instruments.get(gap.S)?.restart(gap.ch, now);
  else market.addGap(gap);
  if (gap.reason === "skipped") skippedAt = now;
}

function processNotice(notice) {
  processHeartbeat("list", notice);
  if (notice.T === "replay" && notice.id === undefined) setReplay(notice);
  else if (notice.T === "configured") admit();
  else if (notice.T === "error" && notice.code === INVALID_ACTION && notice.id === undefined) {
    replayBar.setReadOnly(notice.msg.slice(notice.msg.indexOf(": ") + 1).trim());
  }
}

function processHeartbeat(which, notice) {
  if (notice.T === "heartbeat") connections[which].serverLagMs = notice.lag_ms;
}

/** Request the selected symbol only now: before its first answer, the server might ask for credentials. */
function admit() {
  if (!isAdmitted && view.symbol) select(view.symbol);
  isAdmitted = true;
}

function setReplay(state) {
  const now = performance.now();
  facts.replay = state;
  replayBar.update(state, now);
  market.restart(replayMoves.setState(state, now), now);
}

function showRefusal(error) {
  if (facts.state.name !== "closed") facts.refused = `The server refused a request of this page (${error.message}).`;
}

function setState(which, next) {
  const connection = connections[which];
  connection.state = next;
  connection.serverLagMs = 0;
  // If the server answers one connection, the other one need not wait for its next attempt.
  if (next.name === "connected") for (const stream of streams()) stream.retry();
  if (which === "list" && next.name === "connected") replayBar.setWritable();
  showState(performance.now());
  if (next.name !== "closed" || !needsCredentials(next.code)) return;
  closeStreams();
  credentials.ask(next.code);
}

/** Determine how live the page is, and show it. */
function showState(now) {
  const { list: ofList, chart: ofChart } = connections;
  facts.silentMs = Math.max(0, ...streams().map(({ silentMs }) => silentMs));
  facts.ageMs = Math.max(ofList.serverLagMs, ofChart.serverLagMs) + facts.silentMs;
  const state = pageState({
    // Before its first answer, a server may still ask for a key.
    list: isAdmitted || ofList.state.name !== "connected" ? ofList.state : CONNECTING,
    chart: ofChart.state,
    ageMs: facts.ageMs,
    silentMs: facts.silentMs,
    listBehindMs: ofList.behindMs,
    chartBehindMs: ofChart.behindMs,
  });
  if (facts.state.name === "connected" && state.name !== "connected") {
    facts.lostAt = new Date().toISOString().slice(11, 19);
  }
  facts.state = state;
  market.setLive(state.isListLive, now);
  write("state", STATE_NAMES[state.name]);
  write("panel-state", STATE_NAMES[state.name]);
  byId("state").dataset.state = byId("panel-state").dataset.state = state.name;
  const hasSymbols = market.instruments.size > 0;
  byId("main").dataset.staleList = String(hasSymbols && !state.isListLive);
  byId("main").dataset.staleChart = String(hasSymbols && !state.isChartLive);
  showBanner(now);
}

/** Compare the positions of both connections on the selected symbol: one that lacks ticks is not live. */
function compare(now) {
  const { list: ofList, chart: ofChart } = connections;
  const [inList, inChart] = [list, selected].map(({ stream }) => stream.position("trades", selected.symbol));
  ofList.behindMs = ofList.streamLag.read(inList, inChart, now);
  ofChart.behindMs = ofChart.streamLag.read(inChart, inList, now);
}

// -- drawing

function draw(now) {
  if (replayMoves.hasMovedForward(now)) {
    market.restart(() => true, now);
    selected.restart();
  }
  const isDrawn = watchlist.draw(market, now);
  if (isAdmitted && !view.symbol && watchlist.shown.length) select(watchlist.shown[0]);
  const instrument = market.instruments.get(selected.symbol);
  const decimals = instrument?.decimals ?? 2;
  // Drawn together with its row, so that both show the same.
  if (isDrawn) showQuote(selected, instrument, now);
  byId("chart-note").hidden = chart.draw(selected.candles, decimals);
  trades.draw(selected, decimals, now);
  panel.draw(list.stream, selected.stream, facts.state, now);
  replayBar.draw(now, connections.list.state.name === "connected");
  if (now - stateShownAt < STATE_EVERY_MS) return;
  stateShownAt = now;
  compare(now);
  showState(now);
  showTitle(selected.symbol, instrument, facts.state.name === "connected");
  write("chart-note", selected.symbol ? emptyText("No trades of this symbol are retained.") : "");
  write("trades-note", emptyText("No trades yet."));
  showList();
  if (now - remarkedAt > REMARK_MS) remark("");
  list.conflateTrades(market.trades.read(now));
}

/** The text in place of trades when there are none. */
function emptyText(usual) {
  const { state, position } = facts.replay ?? {};
  return state === "paused" ? `Paused at ${position.slice(11, 19)}. Play shows the trades from there on.` : usual;
}

function showBanner(now) {
  const conflated = list?.conflated ?? false;
  const banner = bannerOf({ ...facts, conflated, quietMs: now - market.tickAt, skippedMs: now - skippedAt });
  byId("banner").hidden = !banner;
  byId("banner").dataset.tone = banner?.tone ?? "";
  write("banner-text", banner?.text ?? "");
  byId("banner-feed").hidden = !banner?.feed;
  if (banner?.feed) {
    byId("banner-feed").href = queryOf({ feed: banner.feed }) || location.pathname;
    write("banner-feed", `Go to feed ${banner.feed}`);
  }
}

function showList() {
  const total = market.instruments.size;
  const shown = filter ? watchlist.shown.length : total;
  write("symbols", filter ? `${shown} of ${total}` : `${total}${market.overfull ? "+" : ""}`);
  byId("keep").hidden = !filter || view.symbols !== null || shown === 0 || shown > SYMBOLS_MAX;
  byId("all").hidden = view.symbols === null;
  let note = "";
  const into = view.feed === readView("").feed ? "" : ` --feed ${view.feed}`;
  if (total === 0 && facts.state.name === "connected") {
    note = `No ticks in feed “${view.feed}” yet. The command “tickcast synth${into}” makes some.`;
  } else if (total > 0 && shown === 0) {
    note = view.symbols ? "Press Enter to add it to the list." : "No such symbol has been published.";
  }
  byId("note").hidden = !note;
  write("note", note);
}

/** Report the result of what was entered in the field. */
function remark(text) {
  remarkedAt = performance.now();
  byId("remark").hidden = !text;
  write("remark", text);
}

// -- user input

function showView() {
  history.replaceState(null, "", location.pathname + queryOf(view));
  showEncoding(view.encoding);
  showTimeframe(view.timeframe);
  watchlist.setSort(view.sort);
}

function select(symbol) {
  view.symbol = symbol;
  for (const each of Object.values(connections)) each.streamLag = new StreamLag();
  watchlist.select(symbol);
  selected.show(symbol, TIMEFRAMES[view.timeframe]);
  showQuote(selected, market.instruments.get(symbol), performance.now());
  showView();
}

function step(by) {
  const symbols = watchlist.shown;
  if (!symbols.length) return;
  const at = symbols.indexOf(view.symbol);
  const next = symbols[Math.min(Math.max(at + by, 0), symbols.length - 1)];
  select(next);
  watchlist.focus(next);
}

function setSymbols(symbols) {
  view.symbols = symbols;
  for (const symbol of symbols ?? []) market.instrument(symbol);
  for (const symbol of market.instruments.keys()) {
    if (symbols && !symbols.includes(symbol)) market.forget(symbol);
  }
  list.show(symbols);
  if (symbols?.length && !symbols.includes(view.symbol)) select(symbols[0]);
  showView();
}

function remove(symbol) {
  const symbols = (view.symbols ?? [...market.instruments.keys()]).filter((each) => each !== symbol);
  if (symbols.length > SYMBOLS_MAX) remark(`A custom list holds up to ${SYMBOLS_MAX} symbols.`);
  else setSymbols(symbols);
}

/** Whether the entered text is valid. */
function enter(text) {
  const upper = text.toUpperCase();
  const symbol = [text, upper].find((each) => market.instruments.has(each));
  const first = [...market.instruments.keys()].sort().find((each) => each.toUpperCase().includes(upper));
  if (symbol) return show(symbol);
  if (view.symbols) return add(text);
  if (first) return show(first);
  remark(`There is no symbol “${text}” in feed “${view.feed}”.`);
  return false;
}

function show(symbol) {
  select(symbol);
  // The filter is about to be cleared, and then no longer hides the row.
  setFilter("");
  watchlist.focus(symbol);
  return true;
}

function add(text) {
  const known = [...byId("known").options].map(({ value }) => value);
  const symbol = known.includes(text) || !known.includes(text.toUpperCase()) ? text : text.toUpperCase();
  if (!isSymbol(symbol)) {
    remark(`“${text}” can't be a symbol: it is 1 to 32 of A-Z a-z 0-9 . _ / : -`);
    return false;
  }
  if (view.symbols.length >= SYMBOLS_MAX) {
    remark(`A custom list holds up to ${SYMBOLS_MAX} symbols.`);
    return false;
  }
  setSymbols([...view.symbols, symbol]);
  select(symbol);
  if (known.length && !known.includes(symbol)) remark(`“${symbol}” was added. It has no ticks yet.`);
  return true;
}

function setFilter(text) {
  filter = text;
  if (text) remark("");
  watchlist.setFilter(text);
  showList();
}

function setTimeframe(timeframe) {
  view.timeframe = timeframe;
  chart.setStep(TIMEFRAMES[timeframe]);
  if (view.symbol) select(view.symbol);
  showView();
}

function setEncoding(encoding) {
  view.encoding = list.stream.encoding = selected.stream.encoding = encoding;
  showView();
}

function switchTheme() {
  const isDark = view.theme ? view.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  view.theme = isDark ? "light" : "dark";
  document.documentElement.dataset.theme = view.theme;
  chart.recolour();
  showView();
}

function switchQuotes() {
  const shown = byId("quotes").getAttribute("aria-pressed") !== "true";
  byId("quotes").setAttribute("aria-pressed", String(shown));
  chart.showQuotes(shown);
}

/** Offer the symbols that can be added, when the user is about to add one. */
async function suggest() {
  if (!view.symbols) return;
  const { headers } = credentials;
  const reply = await fetch(urlOf(`symbols?feed=${view.feed}&limit=${SUGGESTIONS_MAX}`), { headers });
  const options = (await reply.json()).map(({ S }) => new Option(S, S));
  byId("known").replaceChildren(...options);
}

const showEncoding = bindGroup(byId("encoding"), setEncoding);
const showTimeframe = bindGroup(byId("timeframe"), setTimeframe);
bindField(byId("search"), { filter: setFilter, enter });
bindKeys({
  "/": () => byId("search").focus(),
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
  Delete: () => remove(view.symbol),
  " ": () => replayBar.toggle(),
  q: switchQuotes,
  t: switchTheme,
  ...Object.fromEntries(Object.keys(TIMEFRAMES).map((each, at) => [at + 1, () => setTimeframe(each)])),
});
byId("search").addEventListener("keydown", ({ key }) => key === "Escape" && remark(""));
byId("search").addEventListener("focus", () => suggest().catch(() => {}));
byId("theme").addEventListener("click", switchTheme);
byId("quotes").addEventListener("click", switchQuotes);
byId("keep").addEventListener("click", () => setSymbols(watchlist.shown));
byId("all").addEventListener("click", () => setSymbols(null));
byId("rows").addEventListener("click", ({ target }) => {
  const symbol = target.closest("tr").dataset.symbol;
  if (target.closest(".drop")) remove(symbol);
  else select(symbol);
});
watchlist.onHeadClick((sort) => {
  view.sort = sort;
  showView();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart?.recolour());
start();
