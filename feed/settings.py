"""All settings of the server and the producers: names, units, defaults and where they come from.

Later sources win: defaults, a TOML file, the environment (`TICKCAST_` and the name in capitals),
the command line.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from feed.errors import InvalidSettings
from feed.ticks import is_feed_name

ENVIRONMENT_PREFIX: Final = "TICKCAST_"
_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_GIB: Final = 1024 * _MIB
_DECADE_S: Final = 10 * 365 * 86_400

Port = Annotated[int, Meta(ge=0, le=65_535)]
Positive = Annotated[int, Meta(ge=1)]
Interval = Annotated[float, Meta(gt=0, le=3600)]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One immutable set of settings. `docs/settings.md` explains each."""

    # The server
    host: str = "127.0.0.1"
    port: Port = 8000
    feeds: tuple[str, ...] = ()
    """Feeds that clients may open; empty means any."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # The store
    redis_url: str | None = None
    """redis://, rediss:// or unix://; without it, the embedded store."""
    runtime_dir: str | None = None
    """Where the embedded store lives; by default a private directory of this user."""
    store_memory_bytes: Annotated[int, Meta(ge=16 * _MIB)] = _GIB
    history_ticks: Annotated[int, Meta(ge=1, le=10_000_000)] = 10_000
    """Ticks kept per stream."""
    history_age_s: Annotated[float, Meta(ge=1, le=_DECADE_S)] = 86_400.0

    # Producers
    outage_buffer_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    """How long a live source's ticks are kept while Redis is away."""
    outage_buffer_bytes: Annotated[int, Meta(ge=64 * _KIB)] = 64 * _MIB
    """How much memory they may take meanwhile."""

    # Clients of the server
    handshake_timeout_s: Interval = 5.0
    """Time for a request to be complete, from the connection's or the request's beginning."""
    message_max_bytes: Annotated[int, Meta(ge=1 * _KIB, le=64 * _MIB)] = 64 * _KIB
    outbox_max_bytes: Annotated[int, Meta(ge=64 * _KIB)] = _MIB
    subscriptions_max: Positive = 1024
    """Symbols and wildcards that one connection may hold."""
    symbols_max: Positive = 100_000
    """Streams of one feed that the server will know."""
    ping_interval_s: Interval = 20.0
    ping_timeout_s: Interval = 20.0

    # Sending
    flush_pace: Annotated[float, Meta(ge=0, le=10)] = 1.0
    """Rest after a flush, as a multiple of what it took."""
    flush_window_ms: Annotated[float, Meta(ge=0, le=1000)] = 10.0
    """The longest such rest."""
    linger_s: Annotated[float, Meta(ge=0, le=3600)] = 5.0
    """How long a stream that nobody wants any more stays subscribed at the broker."""

    @property
    def store_dir(self) -> Path:
        """The directory of the embedded store."""
        if self.runtime_dir:
            return Path(self.runtime_dir)
        base = os.environ.get("XDG_RUNTIME_DIR")
        if base and os.access(base, os.W_OK):
            return Path(base) / "tickcast"
        return Path(tempfile.gettempdir()) / f"tickcast-{os.getuid()}"


def load_settings(
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
    **overrides: object,
) -> Settings:
    """Settings from all their sources; an override of None counts as not given.

    Raises:
        InvalidSettings: a key is unknown, a value is out of range, or the file can't be read.
    """
    values: dict[str, Any] = _read_toml(config) if config else {}
    values.update(_read_environment(os.environ if environment is None else environment))
    values.update((name, value) for name, value in overrides.items() if value is not None)
    if isinstance(values.get("feeds"), str):
        values["feeds"] = [name.strip() for name in values["feeds"].split(",") if name.strip()]
    unknown = sorted(values.keys() - set(Settings.__struct_fields__))
    if unknown:
        raise InvalidSettings(f"unknown setting {unknown[0]!a}; docs/settings.md lists them")
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        raise InvalidSettings(f"{where.rstrip('`') or 'settings'}: {what}") from None
    for name in settings.feeds:
        if not is_feed_name(name):
            raise InvalidSettings(f"feeds: {name!a} is not 1 to 32 characters of a-z 0-9 _ -")
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSettings(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path}: not TOML: {error}") from None


def _read_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX) and value
    }
