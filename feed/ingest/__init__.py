"""From Redis to the hub: opens streams, tracks their sequence and repairs gaps.

Published batches come in; ticks in sequence go out to the hub. Start with `upstream`.
"""
