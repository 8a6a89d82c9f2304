"""Everything that knows Redis: keys, scripts, publisher, subscriber and the embedded store.

Ticks come in from `publisher`, and leave through `subscriber` and `store`. The Lua files are the
scripts that run in Redis.
"""
