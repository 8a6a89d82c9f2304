"""All settings of the server and the producers: names, units, defaults and where they come from.

Later sources win: defaults, a TOML file, the environment (`TICKCAST_` and the name in capitals),
the command line. One rule holds for all settings and sources: an empty value is refused. It is
most often an unset shell variable, and "not set" would open a server that was meant to be closed.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from feed.addresses import is_host_pattern, is_network, is_origin_pattern
from feed.errors import InvalidSettings
from feed.rates import parse_rates
from feed.ticks import is_feed_name

ENVIRONMENT_PREFIX: Final = "TICKCAST_"
_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_GIB: Final = 1024 * _MIB
_LISTS: Final = ("host", "feeds", "hosts", "origins", "trusted_proxies", "unlimited_addresses")
"""Settings that are lists: as text, with commas between."""
_OPEN_LISTS: Final = ("host", "feeds")
"""Lists that would allow more when empty, not less: an empty one is refused as well."""
_DECADE_S: Final = 10 * 365 * 86_400

Port = Annotated[int, Meta(ge=0, le=65_535)]
Positive = Annotated[int, Meta(ge=1)]
Interval = Annotated[float, Meta(gt=0, le=3600)]
Token = Annotated[str, Meta(min_length=16, pattern=r"\A[A-Za-z0-9._~+/-]+=*\Z")]
"""A secret that fits into a header (RFC 6750, section 2.1)."""

_ADDRESS: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})", re.ASCII)
_SERVICE_LINK: Final = re.compile(
    r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_PROTO|_PORT|_ADDR)?)"
)
"""What Kubernetes sets in each pod for a service whose name begins with `tickcast`, less that
(kubernetes.io, "Discovering services"; Docker's links have the same form)."""
_SERVICE_ADDRESS: Final = re.compile(r"(?:tcp|udp|sctp)://")
"""How the value of `…_PORT` begins where it is such a variable."""
_LABEL: Final = re.compile(r"(?:IMAGE|VERSION|TAG|REVISION|COMMIT|BUILD|RELEASE|DIGEST)(?:_\w+)?")
"""What images say of themselves."""
_SECRETS: Final = frozenset(("metrics_token", "redis_url"))
"""Never shown; a Redis's URL may hold its password."""

logger = logging.getLogger("tickcast.settings")


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One immutable set of settings. `docs/settings.md` explains each."""

    # The server
    host: tuple[str, ...] = ("127.0.0.1",)
    """Addresses and names to listen on; `::` is every address, of IPv4 as well."""
    port: Port = 8000
    feeds: tuple[str, ...] = ()
    """Feeds that clients may open; empty means any."""
    log_level: Literal["debug", "info", "warning", "security", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    tls_cert: str | None = None
    """PEM file of the certificate and its chain; with `tls_key` the server speaks TLS."""
    tls_key: str | None = None
    """PEM file of the certificate's private key."""
    metrics_bind: str | None = None
    """HOST:PORT that serves `/metrics`, and nothing else does then."""
    metrics_token: Token | None = None
    """What a request for `/metrics` has to carry."""

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
    bars_lateness_s: Annotated[float, Meta(ge=0, le=3600)] = 2.0
    """How much later than a newer one a trade may come and still be in its bar."""

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

    # Who may come in
    auth: str | None = None
    """A file of API keys, as `tickcast keys` makes it; clients then need credentials."""
    jwt_key: str | None = None
    """A file with the key that tokens are signed with: public in PEM, or a shared secret."""
    jwks_url: str | None = None
    """Where the issuer of tokens publishes its keys."""
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    auth_timeout_s: Interval = 10.0
    """Time for a client to say who it is."""
    origins: tuple[str, ...] = ()
    """Web origins besides the server's own whose pages may connect: https://example.org, or
    https://*.example.org for its subdomains."""
    hosts: tuple[str, ...] = ()
    """Names by which clients reach the server, besides loopback names and IP addresses."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks whose X-Forwarded-For and X-Forwarded-Proto are believed."""

    # How many and how fast
    connections_max: Positive = 10_000
    """Over all servers of a store."""
    connections_per_address_max: Positive = 200
    attempts: str = "5/second; 300/5 minutes"
    """How often one address may try to connect."""
    unlimited_addresses: tuple[str, ...] = ("127.0.0.0/8", "::1")
    """Addresses and networks to which no limit of an address applies."""
    messages_per_s: Annotated[float, Meta(gt=0)] = 5.0
    messages_burst: Positive = 20
    frames_per_s: Annotated[float, Meta(gt=0)] = 50.0
    """Frames of any kind that a client may send, pings included."""
    frames_burst: Positive = 100
    address_bytes_per_s: Annotated[int, Meta(ge=64 * _KIB)] = 4 * _MIB
    """What one address may send through WebSockets, all its connections together."""
    requests_per_s: Annotated[float, Meta(gt=0)] = 20.0
    """HTTP requests of one address."""
    requests_burst: Positive = 100
    shut_out_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    """How long an address that keeps flooding is shut out; 0 for never."""

    # Replays
    steer_replays: bool | None = None
    """Whether clients may steer the replay of a feed; None where no credentials are asked for."""
    tapes: str | None = None
    """A directory of tapes that clients may have played to themselves."""
    replays_per_connection_max: Positive = 4
    replays_max: Positive = 500
    """Of all clients of this server together."""

    # Sending
    flush_pace: Annotated[float, Meta(ge=0, le=10)] = 1.0
    """Rest after a flush, as a multiple of what it took."""
    flush_window_ms: Annotated[float, Meta(ge=0, le=1000)] = 10.0
    """The longest such rest."""
    linger_s: Annotated[float, Meta(ge=0, le=3600)] = 5.0
    """How long a stream that nobody wants any more stays subscribed at the broker."""

    @property
    def steers_replays(self) -> bool:
        """Whether clients may steer the replay that plays into a feed, for all."""
        if self.steer_replays is not None:
            return self.steer_replays
        return not (self.auth or self.jwt_key or self.jwks_url)

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Host and port of `metrics_bind`.

        Raises:
            InvalidSettings: it is no such thing.
        """
        if self.metrics_bind is None:
            return None
        match = _ADDRESS.fullmatch(self.metrics_bind)
        if match is None or int(match[3]) > 65_535:
            raise InvalidSettings(
                f"metrics_bind: {self.metrics_bind[:60]!a} is not HOST:PORT, as in 127.0.0.1:9100"
            )
        return match[1] or match[2], int(match[3])

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [
            (name, "…" if name in _SECRETS and value is not None else value)
            for name, value in msgspec.structs.asdict(self).items()
        ]

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

    A variable that begins with `TICKCAST_` and is no setting is ignored, with a warning unless it
    is known to be foreign.

    Raises:
        InvalidSettings: a key is unknown, a value is empty or out of range, or the file can't be
            read.
    """
    given = _read_toml(config) if config else {}
    given.update(_read_environment(os.environ if environment is None else environment))
    given.update(
        (name, _Given(value, "")) for name, value in overrides.items() if value is not None
    )
    for name, (value, source) in given.items():
        where = f" in {source}" if source else ""
        if name not in Settings.__struct_fields__:
            raise InvalidSettings(
                f"unknown setting {name!a}{where}; the nearest is {_nearest(name)}"
            )
        if _is_empty(name, value):
            raise InvalidSettings(
                f"{name}: empty{where}; give it a value, or leave it out for the default"
            )
        if not all(each.isprintable() for each in _texts(value)):
            raise InvalidSettings(f"{name}: holds a control character or the like{where}")
    values = {name: _split(name, value) for name, (value, _) in given.items()}
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        name = re.split(r"[`\[]", where)[0]
        source = given[name].source if name in given else ""
        where = f" in {source}" if source else ""
        raise InvalidSettings(f"{name or 'settings'}: {what}{where}") from None
    for fault in _faults(settings):
        raise InvalidSettings(fault)
    _ = settings.metrics_address  # Refuses a malformed one.
    return settings


class _Given(NamedTuple):
    """A value, and where it was given: for messages."""

    value: Any
    source: str


def _is_empty(name: str, value: object) -> bool:
    """Whether there is nothing in a value, or in a part of it."""
    if isinstance(value, str) and name in _LISTS:
        return not value.strip(" \t\n,")
    if value in ([], ()):
        return name in _OPEN_LISTS
    return not all(text.strip() for text in _texts(value))


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if isinstance(each, str)]


def _split(name: str, value: Any) -> Any:
    """The value, as a list where the setting is one."""
    if name in _LISTS and isinstance(value, str):
        return [each.strip() for each in value.split(",") if each.strip()]
    return value


def _nearest(name: str) -> str:
    """The setting whose name looks most like this one."""
    return get_close_matches(name.lower(), Settings.__struct_fields__, n=1, cutoff=0)[0]


def _faults(settings: Settings) -> Iterator[str]:
    """What is wrong with settings whose types are right."""
    for name in settings.feeds:
        if not is_feed_name(name):
            yield f"feeds: {name!a} is not 1 to 32 characters of a-z 0-9 _ -"
    if (settings.tls_cert is None) != (settings.tls_key is None):
        yield "tls_cert and tls_key: give both, or neither"
    for origin in settings.origins:
        if not is_origin_pattern(origin):
            yield (
                f"origins: {origin!a} is no origin such as https://example.org or http://host:8080,"
                " nor one with all its subdomains such as https://*.example.org"
            )
    for name in settings.hosts:
        if not is_host_pattern(name):
            yield f"hosts: {name!a} is no name such as feed.example.org, nor *.example.org, nor *"
    for name in ("trusted_proxies", "unlimited_addresses"):
        for network in getattr(settings, name):
            if not is_network(network):
                yield f"{name}: {network!a} is no address, nor a network such as 10.0.0.0/8"
    if settings.jwt_key and settings.jwks_url:
        yield "jwt_key and jwks_url exclude each other"
    try:
        parse_rates(settings.attempts)
    except ValueError:
        yield f"attempts: {settings.attempts!a} is no list of rates such as 5/second; 300/5 minutes"


def _read_toml(path: Path) -> dict[str, _Given]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSettings(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path}: not TOML: {error}") from None
    return {name: _Given(value, str(path)) for name, value in values.items()}


def _read_environment(environment: Mapping[str, str]) -> dict[str, _Given]:
    given = {}
    for variable, value in environment.items():
        rest = variable.removeprefix(ENVIRONMENT_PREFIX)
        if rest == variable or _is_foreign(rest, value):
            continue
        if (name := rest.lower()) in Settings.__struct_fields__:
            given[name] = _Given(value, variable)
        else:
            logger.warning(
                "the variable %a is no setting and is ignored; the nearest is %s%s",
                variable, ENVIRONMENT_PREFIX, _nearest(name).upper(),
            )  # fmt: skip
    return given


def _is_foreign(rest: str, value: str) -> bool:
    """Whether a variable was set by another program and is not a setting.

    Args:
        rest: its name behind the prefix.
    """
    if _SERVICE_LINK.fullmatch(rest) or _LABEL.fullmatch(rest):
        return True
    return rest.endswith("PORT") and _SERVICE_ADDRESS.match(value) is not None
