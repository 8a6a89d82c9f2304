"""The venues of `tickcast live`: the built-in ones, and those that other packages register.

A package registers a subclass of `Venue` as an entry point of the group `tickcast.venues`. It is
imported only when its venue is used, so a broken package does not affect the other venues.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final
from urllib.parse import urlsplit

from producers.venues.binance import Binance
from producers.venues.coinbase import Coinbase
from producers.venues.kraken import Kraken
from tickcast.venues import SymbolRule, Venue
from tickcast.wire.errors import InvalidVenue

_GROUP: Final = "tickcast.venues"
# Names become parts of file names and of the addresses in captures.
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}", re.ASCII)
_ERROR_SHOWN_MAX: Final = 200

VENUES: Final[Mapping[str, Venue]] = {
    venue.name: venue for venue in (Binance(), Coinbase(), Kraken())
}

logger = logging.getLogger("tickcast.venues")


@cache
def entry_points_by_name() -> Mapping[str, EntryPoint]:
    """Return the venues that other packages register, by name, without importing them.

    A name that is already in use is logged and ignored.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=_GROUP):
        if entry.name in VENUES:
            logger.warning("ignored %s: %s is a built-in venue", _describe(entry), entry.name)
        elif entry.name in found:
            logger.warning(
                "ignored %s: %s has the same name", _describe(entry), _describe(found[entry.name])
            )
        else:
            found[entry.name] = entry
    return found


def venue_names() -> list[str]:
    """Return the names of all venues, sorted."""
    return sorted([*VENUES, *entry_points_by_name()])


@cache
def find_venue(name: str) -> Venue | None:
    """Return the venue of a name, or None if there is no such name.

    Raises:
        InvalidVenue: the venue of another package can't be used. The message names the package.
    """
    others = entry_points_by_name()  # Now, so that names in use are always reported.
    if name in VENUES:
        return VENUES[name]
    entry = others.get(name)
    if entry is None:
        return None
    try:
        venue = entry.load()()
        _check(venue, name)
    except Exception as error:
        reason = str(error) if isinstance(error, InvalidVenue) else _summarize(error)
        raise InvalidVenue(f"{_describe(entry)} can't be used: {reason}") from error
    return venue  # type: ignore[no-any-return]


def venue_at(url: str) -> Venue | None:
    """Return the venue at an address, or the one named by its fragment: `ws://…#kraken`.

    A fragment is never sent. Captures use it to name the venue if the address doesn't.

    Raises:
        InvalidVenue: the fragment names a venue of another package, which can't be used.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return None
    if parts.fragment and (named := find_venue(parts.fragment)) is not None:
        return named
    for venue in VENUES.values():
        if any(host == each or host.endswith(f".{each}") for each in venue.hosts):
            return venue
    return None


def _check(venue: Any, name: str) -> None:
    """Check the attributes of a venue from another package. Raises InvalidVenue."""
    if not isinstance(venue, Venue):
        raise InvalidVenue("it is not a subclass of tickcast.venues.Venue")
    if _NAME.fullmatch(name) is None:
        raise InvalidVenue("its name is not 1 to 32 characters of a-z 0-9 _ -")
    if (own := getattr(venue, "name", None)) != name:
        raise InvalidVenue(f"its class has the name {own!a}; both must be the same")
    url = getattr(venue, "url", None)
    if not (isinstance(url, str) and url.startswith(("ws://", "wss://"))):
        raise InvalidVenue(f"its url is {url!a}, not a ws:// or wss:// address")
    if not (venue.limits.streams >= 1 and venue.limits.messages_per_s > 0):
        raise InvalidVenue("its limits must be above 0")
    if not (venue.silence_max_s is None or venue.silence_max_s > 0):
        raise InvalidVenue("its silence_max_s must be above 0, or None")
    if not isinstance(venue.symbols, SymbolRule):
        raise InvalidVenue("its symbols must be a SymbolRule")


def _describe(entry: EntryPoint) -> str:
    package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist else ""
    return f"the venue {entry.name[:40]!a}{package}"


def _summarize(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".split("\n")[0]
    return text[:_ERROR_SHOWN_MAX]
