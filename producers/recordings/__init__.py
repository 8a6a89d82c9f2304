"""Recorded data in all supported formats: tapes, captures, CSV, Parquet and DBN.

Files come in; ticks in the order of their times go out. Start with `sources`.
"""
