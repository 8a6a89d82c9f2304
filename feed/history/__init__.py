"""Clients that catch up: `resume` and `subscribe` with history.

A client's requests come in; pages of recorded ticks go out until the client has reached the live
stream. Start with `backfill`.
"""
