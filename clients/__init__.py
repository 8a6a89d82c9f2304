"""Clients: a library to subscribe with, and the programs that show what arrives."""

from clients.books import Gap, Position
from clients.report import Report, StreamReport
from clients.stream import Stream, connect

__all__ = ["Gap", "Position", "Report", "Stream", "StreamReport", "connect"]
