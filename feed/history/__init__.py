"""Clients that catch up: `resume` and `subscribe` with history.

A client's positions or starting times come in. Recorded ticks go out to it until it has received
exactly what the hub has sent of each stream; from then on the hub serves it. Start with `backfill`,
which takes turns with all clients. `client_backfill` is one client, `cursor` one of its streams,
and `cache` has the pages of ticks that clients share.
"""
