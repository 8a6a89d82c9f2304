"""Replays recorded data into Redis at a chosen speed, controlled by `tickcast replayctl`."""
