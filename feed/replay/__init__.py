"""Private replays: a tape played to one client.

A client's `replay` requests come in; ticks go out at the times that the player sets. Ticks are read
and encoded once for all clients that play the same tape. Start with `scheduler`.
"""
