/** Test vectors shared by this client and the Python client: see `../test_vectors.py`. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Backoff, Pace } from "../../../clients/dashboard/feed/backoff.js";
import { Books } from "../../../clients/dashboard/feed/books.js";
import { ComeBack } from "../../../clients/dashboard/feed/comeback.js";
import { ClientState } from "../../../clients/dashboard/feed/state.js";
import { entriesOf } from "../../../clients/dashboard/feed/subscriptions.js";

const VECTORS = JSON.parse(readFileSync(new URL("../vectors.json", import.meta.url), "utf8"));

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
  } else if (event.held) {
    books.keepPositions(entriesOf(event.held));
  } else if (event.unasked) {
    books.resumeUnasked();
  }
}

for (const { name, events, seen, totals } of VECTORS.books) {
  test(`books: ${name}`, () => {
    const books = new Books();
    const items = [];
    for (const event of events) enter(books, event, items);
    assert.deepEqual(shown(items), seen);
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
        assert.deepEqual(message, step.says);
      } else if (step.unsubscribe) {
        assert.deepEqual(state.unsubscribe(step.unsubscribe).message, step.says);
      } else if (step.hears) {
        const { seen } = state.receive(JSON.stringify(step.hears));
        assert.deepEqual(shown(seen), step.sees);
        assert.deepEqual(state.askEpoch()?.message, step.asks);
      } else {
        state.connected("tickcast.v1.json");
        assert.deepEqual(state.subscribeAgain().map(({ message }) => message), step.says);
      }
    }
  });
}

for (const { name, streams, held, most, says } of VECTORS.comebacks) {
  test(`coming back: ${name}`, () => {
    const books = new Books();
    for (const [channel, symbol] of entriesOf(streams)) books.place(channel, symbol, "e1", 7);
    const size = (fields) => JSON.stringify(fields).length;
    const wishes = entriesOf(held).map((entry) => ({ entry, wish: {} }));
    assert.deepEqual([...new ComeBack(books, size, most).messages(wishes)], says);
  });
}

VECTORS.pace.forEach(({ refusals, delays }, number) => {
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
