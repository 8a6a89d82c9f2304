"""The path of a tick to its subscribers, without I/O.

Ticks come in per stream; encoded frames go out into the outboxes of clients. Start with `hub`.
"""
