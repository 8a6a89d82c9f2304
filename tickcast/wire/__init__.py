"""Everything that travels: ticks, batches, client actions, server messages and frames.

Nothing here does I/O or reads a clock. Start with `ticks`, then `messages`.
"""
