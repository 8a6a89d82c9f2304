"""Live data of trading venues.

A venue's frames come in; ticks go out. Each venue is a class without I/O, based on `venue.Venue`,
and listed in `registry`. `client` connects to it, `normalizer` turns frames into new ticks, and
`capture` records frames.
"""
