"""The supported venues, by name and by address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from producers.venues.binance import Binance
from producers.venues.coinbase import Coinbase
from producers.venues.kraken import Kraken
from producers.venues.venue import Venue

VENUES: Final[Mapping[str, Venue]] = {
    venue.name: venue for venue in (Binance(), Coinbase(), Kraken())
}


def venue_at(url: str) -> Venue | None:
    """Return the venue at an address, or the one named by its fragment: `ws://…#kraken`.

    A fragment is never sent. Captures use it to name the venue if the address doesn't.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return None
    if parts.fragment in VENUES:
        return VENUES[parts.fragment]
    for venue in VENUES.values():
        if any(host == each or host.endswith(f".{each}") for each in venue.hosts):
            return venue
    return None
