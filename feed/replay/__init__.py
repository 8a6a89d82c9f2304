"""Replays: tapes played to one client, and the replays that programs publish into a feed.

A client's `replay` actions come in; ticks go out when they are due. Start with `scheduler` for the
private ones, whose ticks are read and encoded once for all clients, and with `feed_replays`.
"""
