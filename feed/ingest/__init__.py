"""From Redis to the hub: opens streams, tracks their sequence and repairs gaps.

Published batches come in; ticks in sequence go out to the hub. Start with `upstream`, which opens
the streams that clients need. `live_ticks` is the path of a batch, what happens if one is missing,
and when the hub flushes.
"""
