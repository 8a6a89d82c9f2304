"""The feed server: it receives ticks from Redis and sends them to WebSocket clients.

A tick passes through `ingest`, `fanout` and `transport`. A client passes through `server`, `access`
and `fanout`, and through `history` while it catches up. `docs/architecture.md` gives an overview.
"""
