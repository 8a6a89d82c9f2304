/**
 * Follows the trades of `*` with the page's client, and answers each line of its input with its
 * totals and state. For `tests/tickcast/client/test_many_symbols.py`.
 *
 *     node follow.mjs ws://127.0.0.1:8000/stream
 */

import { createInterface } from "node:readline";
import { connect } from "../../../clients/dashboard/feed.js";

let state = "";
let subscribed = false;
const stream = connect(process.argv[2], { onState: ({ name }) => (state = name) });
stream.subscribe({ trades: ["*"] }).then(() => (subscribed = true));
createInterface(process.stdin).on("line", () => {
  const status = { ...stream.totals(), state, subscribed, reconnects: stream.reconnects };
  process.stdout.write(`${JSON.stringify(status)}\n`);
});
