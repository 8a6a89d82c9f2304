/** The page: connects the connections, the market and everything that draws. */

import { SYMBOLS_MAX, TIMEFRAMES, isFeed, isSymbol, queryOf, readView } from "./address.js";
import { Chart } from "./chart.js";
import { Chosen } from "./chosen.js";
import { listenToField, listenToKeys, oneOf } from "./controls.js";
import { Credentials, asksForCredentials } from "./credentials.js";
import { frameInterval, onFrames } from "./frames.js";
import { Market } from "./market.js";
import { StreamLag, bannerOf, pageState } from "./notices.js";
import { Panel, WORDS, write } from "./panel.js";
import { Passes } from "./passes.js";
import { showQuote, showTitle } from "./quote.js";
import { ReplayBar } from "./replay.js";
import { DRAW_EVERY_MS, Table } from "./table.js";
import { Tape } from "./tape.js";
import { Watch } from "./watch.js";

/** A chart that moves thirty times a second looks smooth, and costs half as much as at sixty. */
const FRAMES_PER_DRAW = 2;
const SLOWLY_EVERY_MS = 250;
const REMARK_MS = 8_000;
const SUGGESTIONS_MAX = 2_000;
/** A browser does not say why a server refuses a connection, so the page asks after this long. */
const PROBE_AFTER_MS = 1_500;
const NOT_FOUND = 404;
/** The code of the error for actions that are not allowed here. */
const NOT_HERE = 410;
const part = (id) => document.getElementById(id);
/** An address of the server, which may be below a prefix that a proxy strips. */
const at = (path) => new URL(path, document.baseURI);

const view = readView(location.search);
const market = new Market();
const table = new Table(part("rows"));
const tape = new Tape(part("tape"), part("tape-note"));
const panel = new Panel();
const replayBar = new ReplayBar((message) => watch.stream.say(message));
const passes = new Passes();
const credentials = new Credentials(() => location.reload());
const CONNECTING = { name: "connecting", reason: "", code: 0 };
/** Each connection's state, the delay that the server reports on it, and how far it is behind the other. */
const connections = {
  list: { state: CONNECTING, serverLagMs: 0, streamLag: new StreamLag(), behindMs: 0 },
  chart: { state: CONNECTING, serverLagMs: 0, streamLag: new StreamLag(), behindMs: 0 },
};
const facts = { state: { ...CONNECTING, isListLive: false, isChartLive: false }, feed: view.feed, feedFault: "", refused: "", lostAt: "", ageMs: 0, silentMs: 0, replay: undefined };
let slowAt = -Infinity;
let slowlyAt = -Infinity;
let remarkedAt = -Infinity;
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
    endWith("malformed");
    return;
  }
  chart = new Chart(part("chart"), part("legend"));
  chart.setStep(TIMEFRAMES[view.timeframe]);
  const frameMs = await frameInterval();
  const drawMs = FRAMES_PER_DRAW * frameMs;
  const url = at(`v2/${view.feed}`);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const { encoding } = view;
  const { token, headers } = credentials;
  const ofList = { onTick: takeTick, onGap: takeGap, onNotice: takeNotice, onState: (state) => takeState("list", state), onRefused: takeRefusal };
  watch = new Watch(url.href, ofList, { encoding, conflateMs: DRAW_EVERY_MS, token });
  const ofChart = {
    onTick: (tick) => panel.count(tick, performance.now()),
    onNotice: (notice) => takeHeartbeat("chart", notice),
    onState: (state) => takeState("chart", state),
    onRefused: takeRefusal,
    onRestart: () => chart.restart(),
  };
  chosen = new Chosen(url.href, latestOf, ofChart, { encoding, conflateMs: Math.round(drawMs), token, headers });
  write("frame", `${Math.round(1000 / frameMs)} frames/s; quotes at most every ${DRAW_EVERY_MS} ms, of the chart every ${Math.ceil(drawMs / 10) * 10} ms`);
  for (const symbol of view.symbols ?? []) market.instrument(symbol);
  watch.show(view.symbols);
  showView();
  // For the console of the browser, and for the tests.
  globalThis.tickcast = { market, watch, chosen, chart, facts };
  onFrames(draw, drawMs);
  setTimeout(probeFeed, PROBE_AFTER_MS);
}

const latestOf = (symbol) => at(`snapshot?feed=${view.feed}&symbols=${encodeURIComponent(symbol)}`);

/** Check whether the feed exists. */
async function probeFeed() {
  if (isLetIn || connections.list.state.name !== "connecting") return;
  const reply = await fetch(at(`v2/${view.feed}`)).catch(() => undefined);
  if (reply?.status === NOT_FOUND && !isLetIn) endWith("unknown");
}

/** Show that nothing can be shown of this feed. */
function endWith(feedFault) {
  facts.feedFault = feedFault;
  watch?.stream.close();
  chosen?.stream.close();
  for (const each of Object.values(connections)) each.state = { name: "closed", reason: "", code: 0 };
  showState(performance.now());
}

function takeTick(tick) {
  const now = performance.now();
  passes.receive(tick);
  // Ticks of a symbol that was removed may still be on the way.
  if (view.symbols && !market.instruments.has(tick.S)) return;
  market.take(tick, now);
  panel.time(tick, now);
  panel.count(tick, now);
}

function takeGap(gap) {
  const now = performance.now();
  if (passes.takeGap(gap)) market.instruments.get(gap.S)?.restart(gap.ch, now);
  else market.gap(gap);
  if (gap.reason === "skipped") slowAt = now;
}

function takeNotice(notice) {
  takeHeartbeat("list", notice);
  if (notice.T === "replay" && notice.id === undefined) takeReplay(notice);
  else if (notice.T === "configured") letIn();
  else if (notice.T === "error" && notice.code === NOT_HERE && notice.id === undefined) {
    replayBar.refuse(notice.msg.slice(notice.msg.indexOf(": ") + 1).trim());
  }
}

function takeHeartbeat(which, notice) {
  if (notice.T === "heartbeat") connections[which].serverLagMs = notice.lag_ms;
}

/** Wait until the server has answered: it might ask for credentials first. */
function letIn() {
  if (!isLetIn && view.symbol) choose(view.symbol);
  isLetIn = true;
}

function takeReplay(state) {
  const now = performance.now();
  facts.replay = state;
  replayBar.take(state, now);
  market.restart(passes.takeState(state, now), now);
}

function takeRefusal(error) {
  if (facts.state.name !== "closed") facts.refused = `The server refused what this page needs (${error.message}).`;
}

function takeState(which, next) {
  const connection = connections[which];
  connection.state = next;
  connection.serverLagMs = 0;
  // If the server answers one connection, the other one need not wait for its next attempt.
  if (next.name === "connected") for (const each of [watch, chosen]) each?.stream?.retry();
  if (which === "list" && next.name === "connected") replayBar.allow();
  showState(performance.now());
  if (next.name !== "closed" || !asksForCredentials(next.code)) return;
  watch?.stream.close();
  chosen?.stream.close();
  credentials.ask(next.code);
}

/** Determine how live the page is, and show it. */
function showState(now) {
  const { list, chart: ofChart } = connections;
  const streams = [watch?.stream, chosen?.stream].filter(Boolean);
  facts.silentMs = Math.max(0, ...streams.map(({ silentMs }) => silentMs));
  facts.ageMs = Math.max(list.serverLagMs, ofChart.serverLagMs) + facts.silentMs;
  const state = pageState({
    // Before its first answer, a server may still ask for a key.
    list: isLetIn || list.state.name !== "connected" ? list.state : CONNECTING,
    chart: ofChart.state,
    ageMs: facts.ageMs,
    silentMs: facts.silentMs,
    listBehindMs: list.behindMs,
    chartBehindMs: ofChart.behindMs,
  });
  if (facts.state?.name === "connected" && state.name !== "connected") facts.lostAt = new Date().toISOString().slice(11, 19);
  facts.state = state;
  market.setLive(state.isListLive, now);
  write("state", WORDS[state.name]);
  write("panel-state", WORDS[state.name]);
  part("state").dataset.state = part("panel-state").dataset.state = state.name;
  const hasSymbols = market.instruments.size > 0;
  part("main").dataset.staleList = String(hasSymbols && !state.isListLive);
  part("main").dataset.staleChart = String(hasSymbols && !state.isChartLive);
  showBanner(now);
}

/** Compare the positions of both connections on the selected symbol: one that lacks ticks is not live. */
function compare(now) {
  const { list, chart: ofChart } = connections;
  const [ofWatch, ofChosen] = [watch, chosen].map(({ stream }) => stream.position("trades", chosen.symbol));
  list.behindMs = list.streamLag.read(ofWatch, ofChosen, now);
  ofChart.behindMs = ofChart.streamLag.read(ofChosen, ofWatch, now);
}

// -- drawing

function draw(now) {
  if (passes.hasGoneForward(now)) {
    market.restart(() => true, now);
    chosen.beginAnew();
  }
  const isDrawn = table.draw(market, now);
  if (isLetIn && !view.symbol && table.shown.length) choose(table.shown[0]);
  const instrument = market.instruments.get(chosen.symbol);
  const decimals = instrument?.decimals ?? 2;
  // Drawn together with its row, so that both show the same.
  if (isDrawn) showQuote(chosen, instrument, now);
  part("chart-note").hidden = chart.draw(chosen.candles, decimals);
  tape.draw(chosen, decimals, now);
  panel.draw(watch.stream, chosen.stream, facts.state, now);
  replayBar.draw(now, connections.list.state.name === "connected");
  if (now - slowlyAt < SLOWLY_EVERY_MS) return;
  slowlyAt = now;
  compare(now);
  showState(now);
  showTitle(chosen.symbol, instrument, facts.state.name === "connected");
  write("chart-note", chosen.symbol ? nothingOf("No trades of this symbol are kept.") : "");
  write("tape-note", nothingOf("No trades yet."));
  showList();
  if (now - remarkedAt > REMARK_MS) remark("");
  watch.ease(market.trades.read(now));
}

/** The text in place of trades when there are none. */
function nothingOf(usual) {
  const { state, position } = facts.replay ?? {};
  return state === "paused" ? `Paused at ${position.slice(11, 19)}. Play shows what was traded from there on.` : usual;
}

function showBanner(now) {
  const eased = watch?.eased ?? false;
  const banner = bannerOf({ ...facts, eased, quietMs: now - market.tickAt, slowMs: now - slowAt });
  part("banner").hidden = !banner;
  part("banner").dataset.tone = banner?.tone ?? "";
  write("banner-text", banner?.text ?? "");
  part("banner-feed").hidden = !banner?.feed;
  if (banner?.feed) {
    part("banner-feed").href = queryOf({ feed: banner.feed }) || location.pathname;
    write("banner-feed", `Go to feed ${banner.feed}`);
  }
}

function showList() {
  const total = market.instruments.size;
  const shown = filter ? table.shown.length : total;
  write("symbols", filter ? `${shown} of ${total}` : `${total}${market.overfull ? "+" : ""}`);
  part("keep").hidden = !filter || view.symbols !== null || shown === 0 || shown > SYMBOLS_MAX;
  part("all").hidden = view.symbols === null;
  let note = "";
  const into = view.feed === readView("").feed ? "" : ` --feed ${view.feed}`;
  if (total === 0 && facts.state.name === "connected") note = `No ticks in feed “${view.feed}” yet. The command “tickcast synth${into}” makes some.`;
  else if (total > 0 && shown === 0) note = view.symbols ? "Enter adds it to the list." : "No such symbol has been published.";
  part("note").hidden = !note;
  write("note", note);
}

/** Report the result of what was entered in the field. */
function remark(text) {
  remarkedAt = performance.now();
  part("remark").hidden = !text;
  write("remark", text);
}

// -- user input

function showView() {
  history.replaceState(null, "", location.pathname + queryOf(view));
  showEncoding(view.encoding);
  showTimeframe(view.timeframe);
  table.setSort(view.sort);
}

function choose(symbol) {
  view.symbol = symbol;
  for (const each of Object.values(connections)) each.streamLag = new StreamLag();
  table.choose(symbol);
  chosen.show(symbol, TIMEFRAMES[view.timeframe]);
  showQuote(chosen, market.instruments.get(symbol), performance.now());
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
  if (symbols.length > SYMBOLS_MAX) remark(`A list of your own holds ${SYMBOLS_MAX} symbols at most.`);
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
  choose(symbol);
  // The filter is about to be cleared, and then no longer hides the row.
  setFilter("");
  table.focus(symbol);
  return true;
}

function add(text) {
  const known = [...part("known").options].map(({ value }) => value);
  const symbol = known.includes(text) || !known.includes(text.toUpperCase()) ? text : text.toUpperCase();
  if (!isSymbol(symbol)) {
    remark(`“${text}” can't be a symbol: it is 1 to 32 of A-Z a-z 0-9 . _ / : -`);
    return false;
  }
  if (view.symbols.length >= SYMBOLS_MAX) {
    remark(`A list of your own holds ${SYMBOLS_MAX} symbols at most.`);
    return false;
  }
  setSymbols([...view.symbols, symbol]);
  choose(symbol);
  if (known.length && !known.includes(symbol)) remark(`“${symbol}” is in the list. Nothing of it has been published yet.`);
  return true;
}

function setFilter(text) {
  filter = text;
  if (text) remark("");
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

/** Offer the symbols that can be added, when the user is about to add one. */
async function suggest() {
  if (!view.symbols) return;
  const reply = await fetch(at(`symbols?feed=${view.feed}&limit=${SUGGESTIONS_MAX}`), { headers: credentials.headers });
  const options = (await reply.json()).map(({ S }) => new Option(S, S));
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
part("search").addEventListener("keydown", ({ key }) => key === "Escape" && remark(""));
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
