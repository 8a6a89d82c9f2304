"""All settings of the server and the producers: names, units, defaults and sources.

Later sources override earlier ones: defaults, a TOML file, the environment (`TICKCAST_` and the
name in capitals), the command line. Empty values are refused for all settings and sources. An
empty value usually comes from an unset shell variable, and treating it as "not set" could open a
server that was meant to be closed.
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
from limits import parse_many
from msgspec import Meta, Struct

from tickcast.wire.addresses import is_host_pattern, is_network, is_origin_pattern
from tickcast.wire.errors import InvalidSettings
from tickcast.wire.ticks import is_feed_name

ENVIRONMENT_PREFIX: Final = "TICKCAST_"
_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_GIB: Final = 1024 * _MIB
# Settings that are lists; as text, their items are separated by commas.
_LISTS: Final = ("host", "feeds", "hosts", "origins", "trusted_proxies", "unlimited_addresses")
# Lists that allow more when empty, not less. An empty list is refused for these as well.
_OPEN_LISTS: Final = ("host", "feeds")
_DECADE_S: Final = 10 * 365 * 86_400

Port = Annotated[int, Meta(ge=0, le=65_535)]
Positive = Annotated[int, Meta(ge=1)]
Interval = Annotated[float, Meta(gt=0, le=3600)]
# A secret that fits into a header (RFC 6750, section 2.1).
Token = Annotated[str, Meta(min_length=16, pattern=r"\A[A-Za-z0-9._~+/-]+=*\Z")]

_ROOT_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)+", re.ASCII)
_ADDRESS: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})", re.ASCII)
# Variables, without the prefix, that Kubernetes sets in each pod for a service whose name begins
# with `tickcast` (kubernetes.io, "Discovering services"; Docker's links have the same form).
_SERVICE_LINK: Final = re.compile(
    r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_PROTO|_PORT|_ADDR)?)"
)
# Beginning of the value of `…_PORT` if it is such a variable.
_SERVICE_ADDRESS: Final = re.compile(r"(?:tcp|udp|sctp)://")
# Variables, without the prefix, in which container images describe themselves.
_LABEL: Final = re.compile(r"(?:IMAGE|VERSION|TAG|REVISION|COMMIT|BUILD|RELEASE|DIGEST)(?:_\w+)?")
# Settings that are never shown. The Redis URL may contain a password.
SECRETS: Final = frozenset(("metrics_token", "redis_url"))

logger = logging.getLogger("tickcast.settings")


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An immutable set of settings; `docs/settings.md` explains each."""

    # -- the server

    # Addresses and names to listen on; `::` means every address, including IPv4.
    host: tuple[str, ...] = ("127.0.0.1",)
    port: Port = 8000
    # Feeds that clients may open; empty means any.
    feeds: tuple[str, ...] = ()
    log_level: Literal["debug", "info", "warning", "security", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    # PEM file of the certificate and its chain; with `tls_key` the server speaks TLS.
    tls_cert: str | None = None
    # PEM file of the certificate's private key.
    tls_key: str | None = None
    # Path prefix of all addresses, such as /ticks, for a proxy that passes it on.
    root_path: str | None = None
    # HOST:PORT to serve `/metrics` on; it is then not served anywhere else.
    metrics_bind: str | None = None
    # Bearer token that requests for `/metrics` must carry.
    metrics_token: Token | None = None

    # -- the store

    # redis://, rediss:// or unix://; without it, the embedded store.
    redis_url: str | None = None
    # Directory of the embedded store; by default a private directory of this user.
    runtime_dir: str | None = None
    store_memory_bytes: Annotated[int, Meta(ge=16 * _MIB)] = _GIB
    # Ticks kept per stream.
    history_ticks: Annotated[int, Meta(ge=1, le=10_000_000)] = 10_000
    history_age_s: Annotated[float, Meta(ge=1, le=_DECADE_S)] = 86_400.0

    # -- producers

    # How long a live source's ticks are kept while Redis is away.
    outage_buffer_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    # Memory limit for these ticks.
    outage_buffer_bytes: Annotated[int, Meta(ge=64 * _KIB)] = 64 * _MIB
    # How late a trade may arrive, after a newer one, and still count in its bar.
    bars_lateness_s: Annotated[float, Meta(ge=0, le=3600)] = 2.0

    # -- clients of the server

    # Time limit for a complete request, counted from the start of the connection or request.
    handshake_timeout_s: Interval = 5.0
    message_max_bytes: Annotated[int, Meta(ge=1 * _KIB, le=64 * _MIB)] = 64 * _KIB
    outbox_max_bytes: Annotated[int, Meta(ge=64 * _KIB)] = _MIB
    # Symbols and wildcards that one connection may hold.
    subscriptions_max: Positive = 1024
    # Maximum number of streams that the server tracks per feed.
    symbols_max: Positive = 100_000
    ping_interval_s: Interval = 20.0
    ping_timeout_s: Interval = 20.0

    # -- access

    # A file of API keys made by `tickcast keys`; if set, clients need credentials.
    auth: str | None = None
    # A file with the key that verifies tokens: a public key in PEM, or a shared secret.
    jwt_key: str | None = None
    # URL at which the issuer of tokens publishes its keys.
    jwks_url: str | None = None
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    # Time limit for a client to authenticate.
    auth_timeout_s: Interval = 10.0
    # Web origins whose pages may connect, besides the server's own: https://example.org, or
    # https://*.example.org for its subdomains.
    origins: tuple[str, ...] = ()
    # Host names of the server that clients may use, besides loopback names and IP addresses.
    hosts: tuple[str, ...] = ()
    # Addresses and networks whose X-Forwarded-For and X-Forwarded-Proto are trusted.
    trusted_proxies: tuple[str, ...] = ()

    # -- limits

    # Limit for all servers that share a store.
    connections_max: Positive = 10_000
    connections_per_address_max: Positive = 200
    # How often one address may try to connect.
    attempts: str = "5/second; 300/5 minutes"
    # Addresses and networks that are exempt from the limits per address.
    unlimited_addresses: tuple[str, ...] = ("127.0.0.0/8", "::1")
    messages_per_s: Annotated[float, Meta(gt=0)] = 5.0
    messages_burst: Positive = 20
    # Frames of any kind that a client may send, pings included.
    frames_per_s: Annotated[float, Meta(gt=0)] = 50.0
    frames_burst: Positive = 100
    # Bytes that one address may send over WebSockets, over all its connections.
    address_bytes_per_s: Annotated[int, Meta(ge=64 * _KIB)] = 4 * _MIB
    # HTTP requests that one address may send.
    requests_per_s: Annotated[float, Meta(gt=0)] = 20.0
    requests_burst: Positive = 100
    # Ticks that one credential, or one address on a server without authentication, may publish
    # through the server.
    publish_ticks_per_s: Annotated[float, Meta(gt=0)] = 250_000.0
    # How long an address that keeps flooding is shut out; 0 disables this.
    shut_out_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0

    # -- replays

    # Whether clients may steer a feed's replay; None allows it if no credentials are required.
    steer_replays: bool | None = None
    # A directory of tapes that clients may play as private replays.
    tapes: str | None = None
    replays_per_connection_max: Positive = 4
    # Limit for all clients of this server together.
    replays_max: Positive = 500

    # -- sending

    # Pause after a flush, as a multiple of the time it took.
    flush_pace: Annotated[float, Meta(ge=0, le=10)] = 1.0
    # Maximum length of this pause.
    flush_window_ms: Annotated[float, Meta(ge=0, le=1000)] = 10.0
    # How long an unused stream stays subscribed at the broker.
    linger_s: Annotated[float, Meta(ge=0, le=3600)] = 5.0

    @property
    def steers_replays(self) -> bool:
        """Whether clients may steer the shared replay of a feed."""
        if self.steer_replays is not None:
            return self.steer_replays
        return not (self.auth or self.jwt_key or self.jwks_url)

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Host and port of `metrics_bind`. Raises InvalidSettings."""
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
            (name, "…" if name in SECRETS and value is not None else value)
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
    config: Path | None = None, environment: Mapping[str, str] | None = None, **overrides: object
) -> Settings:
    """Load settings from all sources; an override of None counts as not given.

    Variables that begin with `TICKCAST_` but are not settings are ignored. Unless they are known to
    come from other programs, a warning is logged.

    Raises:
        InvalidSettings: a key is unknown, a value is empty or out of range, or the file can't be
            read.
    """
    settings, _ = load_with_sources(config, environment, **overrides)
    return settings


def load_with_sources(
    config: Path | None = None, environment: Mapping[str, str] | None = None, **overrides: object
) -> tuple[Settings, dict[str, str]]:
    """Load settings like `load_settings`, and return where each value that is set comes from.

    The source is the path of the file, the name of the variable, or "" for an override.
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
            raise InvalidSettings(f"{name}: contains a control or invisible character{where}")
    values = {name: _split(name, value) for name, (value, _) in given.items()}
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        name = re.split(r"[`\[]", where)[0]
        source = given[name].source if name in given else ""
        where = f" in {source}" if source else ""
        raise InvalidSettings(f"{name or 'settings'}: {what}{where}") from None
    for message in _find_errors(settings):
        raise InvalidSettings(message)
    _ = settings.metrics_address  # Raises if it is malformed.
    return settings, {name: source for name, (_, source) in given.items()}


class _Given(NamedTuple):
    """A value, and its source for error messages."""

    value: Any
    source: str


def _is_empty(name: str, value: object) -> bool:
    """Whether a value, or a part of it, is empty."""
    if isinstance(value, str) and name in _LISTS:
        return not value.strip(" \t\n,")
    if value in ([], ()):
        return name in _OPEN_LISTS
    return not all(text.strip() for text in _texts(value))


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if isinstance(each, str)]


def _split(name: str, value: Any) -> Any:
    """Split the value into a list if the setting is one."""
    if name in _LISTS and isinstance(value, str):
        return [each.strip() for each in value.split(",") if each.strip()]
    return value


def _nearest(name: str) -> str:
    """The setting with the most similar name."""
    return get_close_matches(name.lower(), Settings.__struct_fields__, n=1, cutoff=0)[0]


def _find_errors(settings: Settings) -> Iterator[str]:
    """Yield what is wrong with settings whose types are valid."""
    yield from _find_errors_in_lists(settings)
    if settings.root_path is not None and not _ROOT_PATH.fullmatch(settings.root_path):
        yield (
            f"root_path: {settings.root_path!a} is not a path such as /ticks: it starts with /,"
            " doesn't end with one, and has only letters, digits and . _ ~ -"
        )
    if (settings.tls_cert is None) != (settings.tls_key is None):
        yield "tls_cert and tls_key: give both, or neither"
    if settings.jwt_key and settings.jwks_url:
        yield "jwt_key and jwks_url exclude each other"
    try:
        parse_many(settings.attempts)
    except ValueError:
        yield (
            f"attempts: {settings.attempts!a} is not a list of rates such as"
            " 5/second; 300/5 minutes"
        )


def _find_errors_in_lists(settings: Settings) -> Iterator[str]:
    for name in settings.feeds:
        if not is_feed_name(name):
            yield f"feeds: {name!a} is not 1 to 32 characters of a-z 0-9 _ -"
    for origin in settings.origins:
        if not is_origin_pattern(origin):
            yield (
                f"origins: {origin!a} is not an origin such as https://example.org or"
                " http://host:8080, or https://*.example.org for all subdomains"
            )
    for name in settings.hosts:
        if not is_host_pattern(name):
            yield f"hosts: {name!a} is not a host name, a pattern such as *.example.org, or *"
    for name in ("trusted_proxies", "unlimited_addresses"):
        for network in getattr(settings, name):
            if not is_network(network):
                yield f"{name}: {network!a} is not an address or a network such as 10.0.0.0/8"


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
                "ignored the variable %a, which is not a setting; the nearest is %s%s",
                variable, ENVIRONMENT_PREFIX, _nearest(name).upper(),
            )  # fmt: skip
    return given


def _is_foreign(rest: str, value: str) -> bool:
    """Whether a variable was set by another program and is not a setting."""
    if _SERVICE_LINK.fullmatch(rest) or _LABEL.fullmatch(rest):
        return True
    return rest.endswith("PORT") and _SERVICE_ADDRESS.match(value) is not None
