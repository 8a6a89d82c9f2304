"""The commands that publish or handle recorded data."""
