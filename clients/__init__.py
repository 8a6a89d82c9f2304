"""Clients: a library to subscribe with, and the programs that show what arrives."""

from clients.stream import Stream, connect

__all__ = ["Stream", "connect"]
