"""The client library behind `tickcast.connect`.

A server's messages come in; ticks and notices go out. `stream` is the public class, `state` the
rules without I/O.
"""
