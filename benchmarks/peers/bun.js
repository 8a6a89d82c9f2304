// The Bun server: clients subscribe to topics, and lines from a unix socket are published.
// uWebSockets combines everything published in one loop iteration into one write per client.

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  fetch(request, server) {
    return server.upgrade(request) ? undefined : new Response("WebSocket only", { status: 426 });
  },
  websocket: {
    perMessageDeflate: false,
    idleTimeout: 0,
    message(client, text) {
      for (const symbol of JSON.parse(text).subscribe) client.subscribe(symbol);
      client.send("subscribed");
    },
  },
});

let rest = "";
Bun.listen({
  unix: Bun.argv[2],
  socket: {
    data(_, chunk) {
      const text = rest + chunk.latin1Slice();
      let start = 0;
      for (let end; (end = text.indexOf("\n", start)) >= 0; start = end + 1) {
        const blank = text.indexOf(" ", start);
        server.publish(text.slice(start, blank), text.slice(blank + 1, end));
      }
      rest = text.slice(start);
    },
  },
});

console.log(`listening on ${server.port}`);
