/** The parts of the page that draw nothing: candles, counters, messages and the address. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { isSymbol, queryOf, readView } from "../../../clients/dashboard/address.js";
import { Candles } from "../../../clients/dashboard/candles.js";
import { Market, Rate, TREND_POINTS, Trend, isHistory } from "../../../clients/dashboard/market.js";
import { exactVolume, price, size, volume } from "../../../clients/dashboard/format.js";
import { StreamLag, bannerOf, pageState, sum } from "../../../clients/dashboard/status.js";
import { Clock, Delays } from "../../../clients/dashboard/panel.js";
import { ReplayMoves, positionAfter, ratioOf, timeAt } from "../../../clients/dashboard/replay.js";

const S = 1000;

test("candles are rolled up, whatever the order of their seconds", () => {
  const candles = new Candles();
  candles.addTrade(61 * S, 10, 1);
  candles.addTrade(61.5 * S, 12, 2);
  candles.addTrade(119 * S, 9, 3);
  candles.addTrade(120 * S, 11, 4);
  candles.addTrade(60 * S, 8, 5);
  candles.addQuote(120.9 * S, 11.5);
  assert.deepEqual(candles.rollUp(60), [
    { time: 60, open: 8, high: 12, low: 8, close: 9, volume: 11, mid: NaN },
    { time: 120, open: 11, high: 11, low: 11, close: 11, volume: 4, mid: 11.5 },
  ]);
  assert.deepEqual(candles.rollUp(1).map(({ time }) => time), [60, 61, 119, 120]);
  assert.deepEqual(candles.rollUp(60, 119).map(({ volume }) => volume), [11, 4]);
  assert.deepEqual(candles.rollUp(1, -Infinity, 2).map(({ time }) => time), [119, 120]);
});

test("a second becomes a candle with its first trade", () => {
  const candles = new Candles();
  candles.addQuote(5 * S, 1);
  assert.ok(Number.isNaN(candles.rollUp(1)[0].open));
  candles.addTrade(5 * S, 2, 1);
  assert.deepEqual(candles.rollUp(1), [{ time: 5, open: 2, high: 2, low: 2, close: 2, volume: 1, mid: 1 }]);
});

test("candles report the first second that has changed", () => {
  const candles = new Candles();
  candles.addTrade(5 * S, 1, 1);
  assert.equal(candles.changedFrom, 5);
  candles.markDrawn();
  assert.equal(candles.changedFrom, Infinity);
  candles.addTrade(7 * S, 1, 1);
  candles.addTrade(6 * S, 1, 1);
  assert.equal(candles.changedFrom, 6);
});

test("candles are bounded: the oldest go first", () => {
  const candles = new Candles(100);
  for (let second = 0; second < 1000; second++) candles.addTrade(second * S, second, 1);
  const rows = candles.rollUp(1);
  assert.ok(rows.length <= 100 && rows.length >= 75);
  assert.equal(rows.at(-1).time, 999);
});

test("a rate covers the last whole seconds", () => {
  const rate = new Rate();
  for (let ms = 0; ms < 10 * S; ms += 100) rate.add(ms, 2);
  assert.equal(rate.read(10 * S), 20);
  assert.equal(rate.read(60 * S), 0);
});

test("a trend has holes where no price was known", () => {
  const trend = new Trend();
  trend.set(5, 0);
  trend.advance(1 * S, true);
  trend.advance(2 * S, false);
  const points = [...trend];
  assert.equal(points.length, TREND_POINTS);
  assert.deepEqual(points.slice(-5), [5, 5, 5, NaN, NaN]);
});

test("percentiles cover the last minute, accurate to a few percent", () => {
  const delays = new Delays();
  for (let ms = 1; ms <= 1000; ms++) delays.add(ms, 0);
  const [half, most] = delays.percentiles([0.5, 0.99], 59 * S);
  assert.ok(Math.abs(half / 500 - 1) < 0.1 && Math.abs(most / 990 - 1) < 0.1);
  assert.equal(delays.percentiles([0.5], 61 * S), undefined);
});

test("the clock uses the fastest ping", () => {
  const clock = new Clock();
  assert.equal(clock.ahead, undefined);
  clock.addPing(0, 100, 1000);
  clock.addPing(200, 202, 1201);
  clock.addPing(300, 500, 999);
  assert.equal(clock.ahead, 1000);
  assert.equal(clock.isSettled, false);
  clock.addPing(600, 700, 1600);
  assert.equal(clock.isSettled, true);
});

test("volumes count trades since the page was opened, and whether some are missing", () => {
  const market = new Market();
  market.addTick({ T: "t", S: "ES", p: 1, s: 7, seq: 1, snap: true }, 0);
  market.addTick({ T: "t", S: "ES", p: 2, s: 3, seq: 2 }, 1);
  const instrument = market.instruments.get("ES");
  assert.deepEqual([instrument.volume, instrument.change, instrument.incomplete], [3, 1, false]);
  market.addGap({ ch: "trades", S: "ES" });
  assert.equal(instrument.incomplete, true);
});

test("after an epoch a symbol of a replay starts over, channel by channel", () => {
  const market = new Market();
  market.addTick({ T: "t", S: "ES", p: 2, s: 3, seq: 2, cf: 1 }, 0);
  market.addTick({ T: "q", S: "ES", bp: 1, ap: 3, seq: 1 }, 0);
  const instrument = market.instruments.get("ES");
  const restart = (now) => market.restart((channel) => channel === "trades", now);
  restart(0);
  instrument.forgetOutdated(999);
  assert.equal(instrument.last, 2, "a replay in a loop does not flicker");
  instrument.forgetOutdated(1000);
  assert.deepEqual([instrument.last, instrument.volume, instrument.incomplete, instrument.mid], [undefined, 0, false, 2]);
  market.addTick({ T: "t", S: "ES", p: 4, s: 1, seq: 1 }, 1000);
  assert.deepEqual([instrument.volume, instrument.change], [1, 0]);
  restart(1100);
  market.addTick({ T: "t", S: "ES", p: 5, s: 2, seq: 1 }, 1101);
  instrument.forgetOutdated(9000);
  assert.deepEqual([instrument.last, instrument.volume, instrument.change], [5, 2, 0]);
  market.restart(() => true, 9000);
  instrument.forgetOutdated(10_000);
  assert.deepEqual([instrument.last, instrument.mid], [undefined, undefined]);
});

const REPLAY = { state: "playing", position: "2013-09-01T00:00:10Z", speed: 10, from: "2013-09-01T00:00:00.083123456Z", to: "2013-09-01T00:01:00Z" };

test("a replay advances between two messages", () => {
  assert.equal(positionAfter(REPLAY, 500), "2013-09-01T00:00:15.000Z");
  assert.equal(positionAfter(REPLAY, 60_000), REPLAY.to);
  for (const other of [{ state: "paused" }, { speed: "max" }]) {
    assert.equal(positionAfter({ ...REPLAY, ...other }, 500), REPLAY.position);
  }
});

test("the scrubber's ends are those of the recording, to the nanosecond", () => {
  assert.deepEqual([timeAt(REPLAY, 0), timeAt(REPLAY, 1)], [REPLAY.from, REPLAY.to]);
  assert.equal(timeAt(REPLAY, 0.5), "2013-09-01T00:00:30.041Z");
  assert.ok(Math.abs(ratioOf(REPLAY, timeAt(REPLAY, 0.25)) - 0.25) < 1e-4);
  assert.equal(ratioOf({ ...REPLAY, to: REPLAY.from }, REPLAY.from), 0);
});

test("a stream of a replay restarts once each time it goes back", () => {
  const moves = new ReplayMoves();
  const gap = { ch: "trades", S: "ES", reason: "epoch" };
  const at = (second) => moves.setState({ ...REPLAY, position: `2013-09-01T00:00:${second}Z` });
  assert.equal(moves.addGap(gap), false, "no replay is known");
  assert.equal(at(20)("trades", "ES"), false);
  assert.equal(moves.addGap({ ...gap, reason: "retention" }), false);
  // After a seek back the state message arrives first, and then the gap.
  assert.equal(at(10)("trades", "ES"), true);
  assert.equal(moves.addGap(gap), true);
  assert.equal(at(30)("trades", "ES"), false);
  // In a loop the gap arrives first: ticks received since then must be kept.
  assert.equal(moves.addGap(gap), true);
  const isOutdated = at("09.5");
  assert.deepEqual([isOutdated("trades", "ES"), isOutdated("quotes", "ES")], [false, true]);
  assert.equal(moves.positionMs, Date.parse("2013-09-01T00:00:09.5Z"));
});

test("candles forget trades or quotes, and seconds without either", () => {
  const candles = new Candles();
  candles.addTrade(5 * S, 2, 1);
  candles.addQuote(6 * S, 3);
  candles.addTrade(7 * S, 4, 1);
  candles.addQuote(7 * S, 5);
  candles.markDrawn();
  candles.forget("trades");
  assert.equal(candles.changedFrom, -Infinity);
  assert.deepEqual(candles.rollUp(1).map(({ time, open, volume, mid }) => [time, open, volume, mid]), [[6, NaN, 0, 3], [7, NaN, 0, 5]]);
  candles.addTrade(6 * S, 1, 1);
  candles.forget("quotes");
  assert.deepEqual(candles.rollUp(1), [{ time: 6, open: 1, high: 1, low: 1, close: 1, volume: 1, mid: NaN }]);
});

test("volumes are short, and exact on hover", () => {
  const cases = [
    [0, "0"], [0.12345, "0.1235"], [12.345, "12.35"], [9_876, "9,876"], [12_345, "12.3k"], [99_960, "100k"],
    [256_000, "256k"], [999_499, "999k"], [999_500, "1.0M"], [16_000, "16.0k"], [1_240_000, "1.2M"], [256_400_000, "256M"], [3.14e9, "3.1B"],
  ];
  for (const [value, text] of cases) assert.equal(volume(value), text);
  assert.equal(exactVolume(1_234_567.25), "1,234,567.25");
});

test("a link shares the view, without invalid values", () => {
  const link = "?symbols=BTC/USD,ACME&symbol=ACME&timeframe=5m&sort=-change&theme=dark&encoding=msgpack";
  assert.equal(queryOf(readView(link)), link);
  assert.equal(queryOf(readView("?timeframe=7h&theme=pink&symbol=<b>&sort=1&encoding=xml")), "");
  assert.deepEqual(readView("?symbols=A,<b>,A,B C").symbols, ["A"]);
  assert.deepEqual(readView("?symbols=").symbols, []);
  assert.equal(isSymbol("A B"), false);
});

const LIVE = { name: "connected", reason: "", code: 0, isListLive: true, isChartLive: true };
const FINE = { state: LIVE, feed: "live", feedFault: "", refused: "", lostAt: "", ageMs: 0, silentMs: 0, replay: undefined, conflated: false, quietMs: 0, skippedMs: Infinity };
const CASES = [
  ["nothing when all is well", {}, undefined, ""],
  ["a cut", { state: { name: "reconnecting", reason: "" }, lostAt: "10:00:00" }, "bad", "from before 10:00:00"],
  ["the end", { state: { name: "closed", reason: "4001 no" } }, "bad", "4001 no"],
  ["a refusal", { refused: "No." }, "bad", "No."],
  ["a silent server", { silentMs: 4500 }, "warn", "nothing for 4 s"],
  ["old data", { ageMs: 4000 }, "warn", "4 s old"],
  ["very old data", { ageMs: 400_000 }, "warn", "6 min old"],
  ["a chart that is behind", { state: { ...LIVE, name: "stale", isChartLive: false } }, "warn", "the chart is catching up"],
  ["the end of the chart alone", { state: { ...LIVE, name: "closed", reason: "4004 no", isChartLive: false } }, "bad", "The watchlist is live."],
  ["an invalid name of a feed", { feed: "A b", feedFault: "malformed" }, "bad", "“A b” can't be the name of a feed"],
  ["an unknown feed", { feed: "nyse", feedFault: "unknown" }, "bad", "no feed “nyse”"],
  ["a server that requires credentials", { state: { name: "closed", reason: "401 not authenticated", code: 401 } }, "bad", "a key or a token"],
  ["nothing in a silent replay, which has its own bar", { replay: { state: "paused" }, quietMs: 20_000 }, undefined, ""],
  ["a slow page", { skippedMs: 5000 }, "warn", "too slow"],
  ["conflation", { conflated: true }, "note", "Conflated"],
  ["silence", { quietMs: 20_000 }, "note", "No tick for 20 s"],
  ["nothing, before the first tick", { quietMs: Infinity }, undefined, ""],
];
for (const [name, facts, tone, words] of CASES) {
  test(`the banner reports ${name}`, () => {
    const banner = bannerOf({ ...FINE, ...facts });
    assert.equal(banner?.tone, tone);
    assert.ok((banner?.text ?? "").includes(words));
  });
}

const STATE = (name) => ({ name, reason: "", code: 0 });
const ALIVE = { list: STATE("connected"), chart: STATE("connected"), ageMs: 500, silentMs: 500, listBehindMs: 0, chartBehindMs: 0 };
const STATES = [
  ["both are live", {}, "connected", true, true],
  ["only the list has reconnected", { chart: STATE("reconnecting") }, "reconnecting", true, false],
  ["only the chart has reconnected", { list: STATE("reconnecting") }, "reconnecting", false, true],
  ["the chart has not connected yet", { chart: STATE("connecting") }, "connecting", true, false],
  ["the chart was refused", { chart: STATE("closed") }, "closed", true, false],
  ["the server is silent", { silentMs: 3500 }, "stale", false, false],
  ["the server gets no ticks", { ageMs: 3500 }, "stale", false, false],
  ["the chart lacks ticks that the list has", { chartBehindMs: 3500 }, "stale", true, false],
  ["the list lacks ticks that the chart has", { listBehindMs: 3500 }, "stale", false, true],
];
for (const [name, facts, ...expected] of STATES) {
  test(`the page's state when ${name}`, () => {
    const state = pageState({ ...ALIVE, ...facts });
    assert.deepEqual([state.name, state.isListLive, state.isChartLive], expected);
  });
}

test("a connection is behind while it lacks ticks that the other one has", () => {
  const behind = new StreamLag();
  const at = (seq, epoch = "e1") => ({ epoch, seq });
  assert.equal(behind.read(at(1), at(5), 1000), 0);
  assert.equal(behind.read(at(4), at(9), 2000), 1000);
  // It need not have everything: only what existed when it last had enough.
  assert.equal(behind.read(at(6), at(12), 3000), 0);
  assert.equal(behind.read(at(6), at(13), 4000), 1000);
  assert.equal(behind.read(at(6), at(1, "e2"), 5000), 0, "another numbering can't be compared");
  assert.equal(behind.read(at(null), at(1, "e2"), 6000), 0, "there may be no past of it");
  assert.equal(behind.read(at(null), at(2, "e2"), 7000), 1000);
  assert.equal(behind.read(at(null, ""), at(null, ""), 8000), 0);
});

const PRICES = [[4e-7, "0.0000004"], [2.59e-7, "0.000000259"], [1.2e-9, "0.0000000012"], [97140.45, "97,140.45"], [97140.4512, "97,140.4512"], [0.1 + 0.2, "0.30"], [5000, "5,000.00"], [1.0812345, "1.0812345"]];
for (const [value, text] of PRICES) {
  test(`a price of ${text} is shown in full`, () => {
    const market = new Market();
    market.addTick({ T: "t", S: "A", p: value, s: 1e-9, seq: 1 }, 0);
    assert.equal(price(value, market.instruments.get("A").decimals), text);
  });
}

test("a small size or volume is not shown as 0", () => {
  assert.deepEqual([size(1e-18), size(2.5e-8), size(0), size(1.5)], ["0.000000000000000001", "0.000000025", "0", "1.5"]);
  assert.deepEqual([volume(1e-6), exactVolume(2.5e-12)], ["0.000001", "0.0000000000025"]);
});

test("a tick is history if it was published long before it was sent", () => {
  assert.equal(isHistory({ tr: 1e6, tw: 2.5e6 }), true);
  assert.equal(isHistory({ tr: 1e6, tw: 1.5e6 }), false);
  assert.equal(isHistory({ snap: true, tr: 1e6, tw: 1e6 }), true);
  assert.equal(isHistory({}), false);
});

test("a paused replay that moves forward restarts all streams; a step does not", () => {
  const moves = new ReplayMoves();
  const at = (second, now) => moves.setState({ ...REPLAY, state: "paused", position: `2013-09-01T00:00:${second}Z` }, now);
  moves.addTick({ t: "2013-09-01T00:00:09.9Z" });
  at(10, 0);
  at(20, 1000);
  assert.equal(moves.hasMovedForward(1400), false, "a tick may be on its way");
  assert.equal(moves.hasMovedForward(1500), true);
  assert.equal(moves.hasMovedForward(1501), false);
  at(21, 2000);
  moves.addTick({ t: "2013-09-01T00:00:21Z" });
  assert.equal(moves.hasMovedForward(3000), false);
  moves.addTick({ t: "2013-09-01T00:00:22Z" });
  at(22, 3000);
  assert.equal(moves.hasMovedForward(4000), false);
  at(30, 5000);
  moves.setState(REPLAY, 5100);
  assert.equal(moves.hasMovedForward(6000), false, "it plays");
});

test("sums of two connections", () => {
  assert.deepEqual(sum({ merged: 1, balanced: true }, { merged: 2, balanced: false }), { merged: 3, balanced: false });
});
