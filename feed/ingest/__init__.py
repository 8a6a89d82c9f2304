"""From Redis to the hub: opens streams, tracks their sequence and repairs gaps.

Published batches come in; ticks in sequence go out to the hub. Start with `upstream`, which opens
the streams that clients need. `live_ticks` is the path of a batch, the reads of history that fill
gaps, and the time of each flush. The rules for gaps are in `tickcast.wire.sequence`.
"""
