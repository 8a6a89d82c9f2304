/** Features of this client alone: parts of bounded size, `resume_ms`, and MessagePack times. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { Encoder } from "@msgpack/msgpack";
import { Books } from "../../../clients/dashboard/feed/books.js";
import { ComeBack } from "../../../clients/dashboard/feed/comeback.js";
import { Pulse } from "../../../clients/dashboard/feed/pulse.js";
import { decode } from "../../../clients/dashboard/feed/wire.js";

function said(entries, books, { most = 60_000, awayMs = 0 } = {}) {
  const size = (fields) => JSON.stringify(fields).length;
  return [...new ComeBack(books, size, most, awayMs).messages(entries)];
}

test("a wildcard over many streams comes back in parts, and each stream in one of them", () => {
  const books = new Books();
  for (let n = 0; n < 500; n++) books.place("trades", `S${n}`, "e1", n);
  const messages = said([{ entry: ["trades", "*"], wish: {} }], books, { most: 1000 });
  const resumed = messages.flatMap(({ resume = [] }) =>
    resume.flatMap((map) => (map.epoch ? Object.entries(map.trades) : [])),
  );
  assert.equal(resumed.length, 500);
  assert.deepEqual(Object.fromEntries(resumed), Object.fromEntries([...Array(500).keys()].map((n) => [`S${n}`, n])));
  assert.equal(messages.at(-1).action, "unsubscribe");
  assert.ok(messages.every((message) => JSON.stringify(message).length <= 1000));
});

test("after a long cut some are content with the latest tick", () => {
  const books = new Books();
  books.place("quotes", "ES", "e1", 3);
  books.place("trades", "ES", "e1", 5);
  const wishes = [
    { entry: ["trades", "ES"], wish: {} },
    { entry: ["quotes", "*"], wish: { resume_ms: 1000 } },
  ];
  assert.deepEqual(said(wishes, books, { awayMs: 999 })[1].resume[0], { epoch: "e1", quotes: { ES: 3 } });
  const [trades, quotes] = said(wishes, books, { awayMs: 1001 });
  assert.deepEqual(trades.resume, [{ epoch: "e1", trades: { ES: 5 } }]);
  assert.deepEqual(quotes, { action: "subscribe", quotes: ["*"], snapshot: true });
  const seen = [];
  books.take("quotes", { T: "q", S: "ES", seq: 9, snap: true }, seen);
  books.take("quotes", { T: "q", S: "ES", seq: 10 }, seen);
  assert.deepEqual(seen[1], { T: "gap", ch: "quotes", S: "ES", from: 4, to: 9, reason: "retention" });
  assert.equal(books.totals().balanced, true);
});

test("streams are bounded", () => {
  const books = new Books(10);
  for (let n = 0; n < 30; n++) books.place("trades", `S${n}`, "e1", 1);
  assert.equal(books.totals().streams, 10);
});

test("times of MessagePack come out as text, to the nanosecond", () => {
  const cases = [
    [[0xd6, 0xff, 0, 0, 0, 1], "1970-01-01T00:00:01Z"],
    [[0xd7, 0xff, ...bytes64((7n << 34n) | 0x1_0000_0000n)], "2106-02-07T06:28:16.000000007Z"],
    [[0xd7, 0xff, ...bytes64(250_000_000n << 34n)], "1970-01-01T00:00:00.25Z"],
    [[0xc7, 12, 0xff, 0x3b, 0x9a, 0xc9, 0xff, ...bytes64(-1n)], "1969-12-31T23:59:59.999999999Z"],
  ];
  for (const [data, text] of cases) {
    const key = new Encoder().encode("t");
    const message = new Uint8Array([0x91, 0x81, ...key, ...data]);
    assert.deepEqual(decode(message.buffer), [{ t: text }]);
  }
});

function bytes64(value) {
  const view = new DataView(new ArrayBuffer(8));
  view.setBigInt64(0, BigInt.asIntN(64, value));
  return new Uint8Array(view.buffer);
}

test("a connection is asked for a word before it is given up", () => {
  const pulse = new Pulse();
  const until = (first, last) => {
    for (let now = first; now < last; now += 500) assert.equal(pulse.check(now, true), "alive");
  };
  pulse.begin(0);
  until(500, 5_500);
  assert.equal(pulse.check(5_500, true), "ask");
  pulse.hear(5_600);
  until(6_000, 11_000);
  assert.equal(pulse.check(11_000, true), "ask");
  until(11_500, 16_500);
  assert.equal(pulse.check(16_500, true), "dead");
});

test("after a sleep a connection is asked at once, and has all the time to answer", () => {
  const pulse = new Pulse();
  pulse.begin(0);
  assert.equal(pulse.check(60_000, true), "ask");
  assert.equal(pulse.check(60_500, true), "alive");
  pulse.begin(70_000);
  for (let now = 70_500; now <= 75_000; now += 500) assert.equal(pulse.check(now, false), "alive");
  assert.equal(pulse.check(75_500, false), "dead");
});
