"""What a client can ask for. `tickcast.wire.parsing` reads these actions from messages."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from msgspec import UNSET, Struct, UnsetType

from tickcast.wire.positions import NO_POSITIONS, Positions
from tickcast.wire.subscriptions import Subscription
from tickcast.wire.times import Time

CONFLATE_STEP_MS: Final = 10
CONFLATE_MAX_MS: Final = 60_000

Id = int | str | None


class SlowPolicy(Enum):
    """What to do with ticks that a client is too slow to receive."""

    CONFLATE = "conflate"
    """Keep only the latest tick of each stream, which counts those that it replaced."""
    SKIP = "skip"
    """Drop them, and announce them in a `skipped` notice."""
    CLOSE = "close"
    """Close the connection."""


class DeliveryOptions(NamedTuple):
    """The options of a subscription, or a connection's defaults; None if not specified."""

    conflate_ms: int | None = None
    slow: SlowPolicy | None = None

    def with_defaults(self, defaults: DeliveryOptions) -> DeliveryOptions:
        """Fill in unspecified options from defaults."""
        return DeliveryOptions(
            defaults.conflate_ms if self.conflate_ms is None else self.conflate_ms,
            defaults.slow if self.slow is None else self.slow,
        )


NO_OPTIONS: Final = DeliveryOptions()


def round_conflate_ms(asked_ms: int) -> int:
    """Round a requested interval up to a step, so that many clients share the same interval."""
    steps = -(-min(asked_ms, CONFLATE_MAX_MS) // CONFLATE_STEP_MS)
    return steps * CONFLATE_STEP_MS


class KeyAndSecret(Struct, frozen=True):
    """The id of an API key and its secret. The `repr` shows neither."""

    key: str
    secret: str

    @property
    def length(self) -> int:
        """The length of its longer part, in characters."""
        return max(len(self.key), len(self.secret))

    def __repr__(self) -> str:
        return "KeyAndSecret(…)"


class BearerToken(Struct, frozen=True):
    """A bearer token: a JSON Web Token, or a secret, which contains the id of its key."""

    text: str

    @property
    def length(self) -> int:
        """Its length, in characters."""
        return len(self.text)

    def __repr__(self) -> str:
        return "Bearer(…)"


Credentials = KeyAndSecret | BearerToken


class Auth(Struct, frozen=True):
    """Authenticates the client."""

    credentials: Credentials
    id: Id = None


class Subscribe(Struct, frozen=True):
    """Subscribes to streams.

    Attributes:
        options: how to deliver them.
        resume: the client's positions in some of the streams; it receives what came after them.
        start: for the other streams, send all ticks from this time on.
        snapshot: send the latest tick of each stream first.
        positions: report the current position of each stream.
    """

    subscriptions: frozenset[Subscription]
    id: Id = None
    options: DeliveryOptions = NO_OPTIONS
    resume: Positions = NO_POSITIONS
    start: Time | None = None
    snapshot: bool = False
    positions: bool = False

    @property
    def wants_history(self) -> bool:
        """Whether it asks for ticks that have already been published."""
        return bool(self.resume) or self.start is not None

    @property
    def is_extended(self) -> bool:
        """Whether it uses an extension to the protocol that ours is based on."""
        return bool(
            self.wants_history or self.snapshot or self.positions or self.options != NO_OPTIONS
        )


class Unsubscribe(Struct, frozen=True):
    """Unsubscribes from streams."""

    subscriptions: frozenset[Subscription]
    id: Id = None


class ListSubscriptions(Struct, frozen=True):
    """Requests the current subscriptions."""

    id: Id = None


class Ping(Struct, frozen=True):
    """Requests a pong."""

    id: Id = None


class Configure(Struct, frozen=True):
    """Sets options of the connection; an option that the message leaves out is UNSET."""

    id: Id = None
    heartbeat_ms: int | UnsetType = UNSET
    stamps: bool | UnsetType = UNSET
    slow: SlowPolicy | UnsetType | None = UNSET
    conflate_ms: int | UnsetType = UNSET
    replay: bool | UnsetType = UNSET


class ReplayCommand(Enum):
    """The commands for a running replay."""

    PAUSE = "replay.pause"
    RESUME = "replay.resume"
    STOP = "replay.stop"
    SEEK = "replay.seek"
    SPEED = "replay.speed"


class PlayTape(Struct, frozen=True):
    """A request to play a tape to the client.

    Attributes:
        id: the client's name for the replay.
        subscriptions: the streams of the tape to play.
        start, end: the part of the tape to play; None means its beginning, or its end.
        speed: multiple of the original speed; infinity means as fast as the client reads.
    """

    id: Id
    tape: str
    subscriptions: frozenset[Subscription]
    speed: float = 1.0
    start: Time | None = None
    end: Time | None = None


class SteerReplay(Struct, frozen=True):
    """A request to steer a replay.

    Attributes:
        id: the client's private replay; None means the shared replay of the feed.
        position: where to continue, for `SEEK`.
        speed: the new speed, for `SPEED`.
    """

    id: Id
    verb: ReplayCommand
    position: Time | None = None
    speed: float | None = None


Action = (
    Auth | Subscribe | Unsubscribe | ListSubscriptions | Ping | Configure | PlayTape | SteerReplay
)


def uses_extension(action: Action) -> bool:
    """Whether an action shows that the client knows the extensions to the base protocol."""
    if action.id is not None or isinstance(action, ListSubscriptions | Ping | Configure):
        return True
    return isinstance(action, Subscribe) and action.is_extended
