"""The commands that publish or handle recorded data, each in the module of its name.

`table_options` has the options for reading tables, and `replay_screen` shows a replay.
"""
