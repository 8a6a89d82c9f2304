"""Recorded data in all supported formats: tapes, captures, JSON lines, CSV, Parquet and DBN.

Files come in; ticks go out, in the order of the file. `formats` detects the format. CSV and Parquet
share `columns`, which finds what each column holds, and `rows`, which makes ticks of rows.
"""
