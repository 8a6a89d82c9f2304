#!/bin/sh
# Explore a running server with common tools: curl for HTTP, and websocat for the WebSocket, or
# `tickcast watch` if websocat isn't installed.
#
#   sh examples/session.sh [HOST:PORT]
set -eu
server=${1:-127.0.0.1:8000}
tickcast=${TICKCAST:-tickcast}

echo "== alive, and ready?"
curl -sS "http://$server/health" && echo
curl -sS "http://$server/ready" && echo

echo "== which symbols are there?"
curl -sS "http://$server/symbols" | head -c 300 && echo

echo "== the latest ticks of two of them"
curl -sS "http://$server/snapshot?symbols=ACME,BOLT" && echo

echo "== three seconds of one, as they come"
if command -v websocat >/dev/null; then
  { echo '{"action":"subscribe","trades":["ACME"],"snapshot":true}'; sleep 3; } |
    websocat --no-close "ws://$server/stream"
else
  timeout 3 "$tickcast" watch ACME --url "ws://$server/stream" </dev/null | cat || true
fi
