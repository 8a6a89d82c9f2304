"""Simulated feeds: recordings replayed at any speed, and a synthetic market.

Recordings or a seed come in; ticks are published when they are due. Start with `replay`, or with
`synthetic` and its `scenarios`.
"""
