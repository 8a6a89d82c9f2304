"""The feed server: it receives ticks from Redis and sends them to WebSocket clients.

Read `ticks` and `protocol` for the vocabulary, `hub` for the fan-out, `upstream` for the input from
Redis and `connection` for the output to clients. `docs/architecture.md` gives an overview.
"""
