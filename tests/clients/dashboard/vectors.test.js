/** Test vectors shared by this client and the Python client: see `tests/tickcast/client/test_vectors.py`. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { SequenceAccounts } from "../../../clients/dashboard/feed/accounts.js";
import { RateLimitDelays, ReconnectDelays } from "../../../clients/dashboard/feed/connection.js";
import { ResumePlanner, subscriptionsOf } from "../../../clients/dashboard/feed/resume.js";
import { ClientState } from "../../../clients/dashboard/feed/state.js";

const VECTORS = JSON.parse(readFileSync(new URL("../../tickcast/client/vectors.json", import.meta.url), "utf8"));

/** Show ticks by their numbers and gaps by their content. */
const shown = (items) =>
  items.map((item) => (item.T === "gap" ? [item.from, item.to, item.reason] : item.seq ?? null));

function addEvent(accounts, event, items) {
  const stream = { ch: "trades", S: "ES" };
  if ("tick" in event) {
    const { tick, cf, snap } = event;
    accounts.addTick("trades", { T: "t", S: "ES", seq: tick ?? undefined, cf, snap }, items);
  } else if (event.skipped) {
    const [from, to] = event.skipped;
    accounts.addNotice({ T: "skipped", ...stream, from, to }, items);
  } else if (event.gap) {
    const [from, to, reason] = event.gap;
    accounts.addNotice({ T: "gap", ...stream, from, to, reason }, items);
  } else if (event.positions) {
    accounts.setPositions(event.positions);
  } else if (event.subscribed) {
    accounts.endRunsOutside(subscriptionsOf(event.subscribed));
  } else if (event.unresumed) {
    accounts.markUnresumed();
  }
}

for (const { name, events, items: expected, totals } of VECTORS.accounts) {
  test(`accounts: ${name}`, () => {
    const accounts = new SequenceAccounts();
    const items = [];
    for (const event of events) addEvent(accounts, event, items);
    assert.deepEqual(shown(items), expected);
    const found = accounts.totals();
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
        const { items } = state.receiveFrame(JSON.stringify(step.receives));
        assert.deepEqual(shown(items), step.items);
        assert.deepEqual(state.requestEpoch()?.message, step.requests);
      } else {
        state.beginConnection("tickcast.v1.json");
        assert.deepEqual(state.restore().map(({ message }) => message), step.sends);
      }
    }
  });
}

for (const { name, streams, subscribed, max_bytes, sends } of VECTORS.resumes) {
  test(`resume: ${name}`, () => {
    const accounts = new SequenceAccounts();
    for (const [channel, symbol] of subscriptionsOf(streams)) accounts.setPosition(channel, symbol, "e1", 7);
    const size = (fields) => JSON.stringify(fields).length;
    const requested = subscriptionsOf(subscribed).map((subscription) => ({ subscription, options: {} }));
    assert.deepEqual([...new ResumePlanner(accounts, size, max_bytes).messages(requested)], sends);
  });
}

VECTORS.rate_limits.forEach(({ refusals, delays }, number) => {
  test(`rate limit ${number + 1}`, () => {
    const limit = new RateLimitDelays(() => 1);
    const found = [];
    for (const code of refusals) {
      if (code === null) limit.reset();
      else found.push(limit.afterRefusal(code));
    }
    assert.deepEqual(found, delays);
  });
});

VECTORS.backoff.forEach(({ calls, delays }, number) => {
  test(`backoff ${number + 1}`, () => {
    const reconnect = new ReconnectDelays(() => 1);
    const found = calls.map(([code, lasted, retry]) =>
      code === "failure" ? reconnect.afterFailure() : reconnect.afterClose(code, lasted, retry),
    );
    assert.deepEqual(found, delays);
  });
});
