"""Clients: a library to subscribe with, and the programs that show what arrives."""

from clients.books import Gap, Position
from clients.callbacks import listen
from clients.notices import Configured, Heartbeat
from clients.private_replay import PrivateReplay, ReplayCut
from clients.report import Report, StreamReport
from clients.stamps import Stamped
from clients.state import Refused
from clients.stream import Stream, connect
from clients.window import Window
from feed.playback import State as ReplayState

__all__ = [
    "Configured", "Gap", "Heartbeat", "Position", "PrivateReplay", "Refused", "ReplayCut",
    "ReplayState", "Report", "Stamped", "Stream", "StreamReport", "Window", "connect", "listen",
]  # fmt: skip
