"""The client library behind `tickcast.connect`.

Frames of a server come in; ticks, gaps and other events go out, each tick accounted for. `stream`
is the public class and `reconnect` keeps it connected. `state` and `accounts` hold the rules,
without I/O. Start with `stream`, then read `state`.
"""
