"""Private replays: a tape played to one client alone, beside its live streams."""
