"""Programs that publish: venues, recordings, replays, a synthetic market, and bars.

Each command in `producers.commands` reads from one source and publishes into Redis.
"""
