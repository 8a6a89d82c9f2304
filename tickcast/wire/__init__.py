"""Everything that travels: ticks, batches, client actions, server messages and frames.

Bytes and decoded messages come in; ticks, actions and replies go out. Nothing here does I/O. Start
with `ticks`. `parsing` and `messages` are the two directions between clients and the server,
`sequence` is the way from the broker, and `playback` is the clock of replays.
"""
