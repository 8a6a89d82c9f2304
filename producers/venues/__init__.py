"""Live data of trading venues.

A venue's messages come in; ticks go out. Each venue is a class without I/O; `runner` connects to it
and `capture` records what it sends.
"""
