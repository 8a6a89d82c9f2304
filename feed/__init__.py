"""The feed: ticks come in from Redis and go out to WebSocket clients.

Read `ticks` and `protocol` for the vocabulary, `hub` for the fan-out, `upstream` for the way in
and `connection` for the way out. `docs/architecture.md` draws the whole.
"""
