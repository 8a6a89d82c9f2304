"""Everything that travels: ticks, batches, client actions, server messages and frames.

Bytes and decoded messages come in; ticks, actions and replies go out. Nothing here does I/O. Start
with `ticks`. `parsing` and `messages` are the two directions between clients and the server,
`sequence` joins batches from the broker and finds gaps, `playback` is the clock of replays, and
`errors` lists all error and close codes.
"""
