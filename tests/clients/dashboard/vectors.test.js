/** Test vectors shared by this client and the Python client: see `tests/tickcast/client/test_vectors.py`. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Backoff, Pace } from "../../../clients/dashboard/feed/backoff.js";
import { Books } from "../../../clients/dashboard/feed/books.js";
import { ComeBack } from "../../../clients/dashboard/feed/comeback.js";
import { ClientState } from "../../../clients/dashboard/feed/state.js";
import { entriesOf } from "../../../clients/dashboard/feed/subscriptions.js";

const VECTORS = JSON.parse(readFileSync(new URL("../../tickcast/client/vectors.json", import.meta.url), "utf8"));

/** Show ticks by their numbers and gaps by their content. */
const shown = (items) =>
  items.map((item) => (item.T === "gap" ? [item.from, item.to, item.reason] : item.seq ?? null));

function enter(books, event, seen) {
  const stream = { ch: "trades", S: "ES" };
  if ("tick" in event) {
    const { tick, cf, snap } = event;
    books.take("trades", { T: "t", S: "ES", seq: tick ?? undefined, cf, snap }, seen);
  } else if (event.skipped) {
    const [from, to] = event.skipped;
    books.takeNotice({ T: "skipped", ...stream, from, to }, seen);
  } else if (event.gap) {
    const [from, to, reason] = event.gap;
    books.takeNotice({ T: "gap", ...stream, from, to, reason }, seen);
  } else if (event.positions) {
    books.standAt(event.positions);
  } else if (event.subscribed) {
    books.keepPositions(entriesOf(event.subscribed));
  } else if (event.unresumed) {
    books.resumeUnasked();
  }
}

for (const { name, events, items: expected, totals } of VECTORS.accounts) {
  test(`accounts: ${name}`, () => {
    const books = new Books();
    const items = [];
    for (const event of events) enter(books, event, items);
    assert.deepEqual(shown(items), expected);
    const found = books.totals();
    for (const [key, value] of Object.entries(totals)) assert.equal(found[key], value, key);
  });
}

for (const { name, steps } of VECTORS.conversations) {
  test(`conversation: ${name}`, () => {
    const state = new ClientState();
    for (const step of steps) {
      if (step.subscribe) {
        const { message } = state.subscribe(step.subscribe, step.options ?? {});
        assert.deepEqual(message, step.sends);
      } else if (step.unsubscribe) {
        assert.deepEqual(state.unsubscribe(step.unsubscribe).message, step.sends);
      } else if (step.receives) {
        const { seen } = state.receive(JSON.stringify(step.receives));
        assert.deepEqual(shown(seen), step.items);
        assert.deepEqual(state.askEpoch()?.message, step.requests);
      } else {
        state.connected("tickcast.v1.json");
        assert.deepEqual(state.subscribeAgain().map(({ message }) => message), step.sends);
      }
    }
  });
}

for (const { name, streams, subscribed, max_bytes, sends } of VECTORS.resumes) {
  test(`coming back: ${name}`, () => {
    const books = new Books();
    for (const [channel, symbol] of entriesOf(streams)) books.place(channel, symbol, "e1", 7);
    const size = (fields) => JSON.stringify(fields).length;
    const wishes = entriesOf(subscribed).map((entry) => ({ entry, wish: {} }));
    assert.deepEqual([...new ComeBack(books, size, max_bytes).messages(wishes)], sends);
  });
}

VECTORS.rate_limits.forEach(({ refusals, delays }, number) => {
  test(`pace ${number + 1}`, () => {
    const pace = new Pace(() => 1);
    const found = [];
    for (const code of refusals) {
      if (code === null) pace.granted();
      else found.push(pace.afterRefusal(code));
    }
    assert.deepEqual(found, delays);
  });
});

VECTORS.backoff.forEach(({ calls, delays }, number) => {
  test(`backoff ${number + 1}`, () => {
    const backoff = new Backoff(() => 1);
    const found = calls.map(([code, lasted, retry]) =>
      code === "failure" ? backoff.afterFailure() : backoff.afterClose(code, lasted, retry),
    );
    assert.deepEqual(found, delays);
  });
});
