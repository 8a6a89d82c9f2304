/** Features of this client alone: parts of bounded size, `resume_ms`, and MessagePack times. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { Encoder } from "@msgpack/msgpack";
import { SequenceAccounts } from "../../../clients/dashboard/feed/accounts.js";
import { LivenessCheck } from "../../../clients/dashboard/feed/connection.js";
import { ResumePlanner } from "../../../clients/dashboard/feed/resume.js";
import { decode } from "../../../clients/dashboard/feed/wire.js";

function messagesOf(requested, accounts, { maxBytes = 60_000, cutMs = 0 } = {}) {
  const size = (fields) => JSON.stringify(fields).length;
  return [...new ResumePlanner(accounts, size, maxBytes, cutMs).messages(requested)];
}

test("a wildcard over many streams is restored in parts, and each stream in one of them", () => {
  const accounts = new SequenceAccounts();
  for (let n = 0; n < 500; n++) accounts.setPosition("trades", `S${n}`, "e1", n);
  const messages = messagesOf([{ subscription: ["trades", "*"], options: {} }], accounts, { maxBytes: 1000 });
  const resumed = messages.flatMap(({ resume = [] }) =>
    resume.flatMap((map) => (map.epoch ? Object.entries(map.trades) : [])),
  );
  assert.equal(resumed.length, 500);
  assert.deepEqual(Object.fromEntries(resumed), Object.fromEntries([...Array(500).keys()].map((n) => [`S${n}`, n])));
  assert.equal(messages.at(-1).action, "unsubscribe");
  assert.ok(messages.every((message) => JSON.stringify(message).length <= 1000));
});

test("after a long cut, resume_ms requests only the latest tick", () => {
  const accounts = new SequenceAccounts();
  accounts.setPosition("quotes", "ES", "e1", 3);
  accounts.setPosition("trades", "ES", "e1", 5);
  const requested = [
    { subscription: ["trades", "ES"], options: {} },
    { subscription: ["quotes", "*"], options: { resume_ms: 1000 } },
  ];
  assert.deepEqual(messagesOf(requested, accounts, { cutMs: 999 })[1].resume[0], { epoch: "e1", quotes: { ES: 3 } });
  const [trades, quotes] = messagesOf(requested, accounts, { cutMs: 1001 });
  assert.deepEqual(trades.resume, [{ epoch: "e1", trades: { ES: 5 } }]);
  assert.deepEqual(quotes, { action: "subscribe", quotes: ["*"], snapshot: true });
  const items = [];
  accounts.addTick("quotes", { T: "q", S: "ES", seq: 9, snap: true }, items);
  accounts.addTick("quotes", { T: "q", S: "ES", seq: 10 }, items);
  assert.deepEqual(items[1], { T: "gap", ch: "quotes", S: "ES", from: 4, to: 9, reason: "retention" });
  assert.equal(accounts.totals().balanced, true);
});

test("streams are bounded", () => {
  const accounts = new SequenceAccounts(10);
  for (let n = 0; n < 30; n++) accounts.setPosition("trades", `S${n}`, "e1", 1);
  assert.equal(accounts.totals().streams, 10);
});

test("MessagePack times are decoded as text, to the nanosecond", () => {
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

test("a silent connection is pinged before it is considered dead", () => {
  const liveness = new LivenessCheck();
  const until = (first, last) => {
    for (let now = first; now < last; now += 500) assert.equal(liveness.check(now, true), "alive");
  };
  liveness.begin(0);
  until(500, 5_500);
  assert.equal(liveness.check(5_500, true), "ping");
  liveness.recordMessage(5_600);
  until(6_000, 11_000);
  assert.equal(liveness.check(11_000, true), "ping");
  until(11_500, 16_500);
  assert.equal(liveness.check(16_500, true), "dead");
});

test("after a sleep a connection is pinged at once, and has the full time to answer", () => {
  const liveness = new LivenessCheck();
  liveness.begin(0);
  assert.equal(liveness.check(60_000, true), "ping");
  assert.equal(liveness.check(60_500, true), "alive");
  liveness.begin(70_000);
  for (let now = 70_500; now <= 75_000; now += 500) assert.equal(liveness.check(now, false), "alive");
  assert.equal(liveness.check(75_500, false), "dead");
});
