"""Producers: the programs that create ticks and publish them, and their building blocks."""
