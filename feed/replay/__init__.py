"""Private replays: tapes played to a single client, in addition to its live streams."""
