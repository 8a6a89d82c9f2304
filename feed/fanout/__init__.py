"""From a stream's ticks to the outboxes of its subscribers, without I/O.

Ticks come in by stream; encoded frames go out to each client. Start with `hub`: it takes streams
and groups from `registry`, encodes ticks once with `encoded_ticks` and writes to each `outbox`.
"""
