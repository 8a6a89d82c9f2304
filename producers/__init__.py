"""Producers: programs and parts that make ticks and publish them."""
