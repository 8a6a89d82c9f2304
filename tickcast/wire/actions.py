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

# The client's name for a request. The server echoes it in the reply.
Id = int | str | None


# -- delivery


class SlowPolicy(Enum):
    """What to do with ticks that a client is too slow to receive."""

    # Keep only the latest tick of each stream, which counts those that it replaced.
    CONFLATE = "conflate"
    # Drop them, and announce them in a `skipped` notice.
    SKIP = "skip"
    # Close the connection.
    CLOSE = "close"


class DeliveryOptions(NamedTuple):
    """The options of a subscription, or a connection's defaults; None if not specified."""

    conflate_ms: int | None = None
    slow: SlowPolicy | None = None

    def with_defaults(self, defaults: DeliveryOptions) -> DeliveryOptions:
        """Fill in unspecified options."""
        return DeliveryOptions(
            defaults.conflate_ms if self.conflate_ms is None else self.conflate_ms,
            defaults.slow if self.slow is None else self.slow,
        )


NO_OPTIONS: Final = DeliveryOptions()


def round_conflate_ms(requested_ms: int) -> int:
    """Round a requested interval up to a step, so that many clients share the same interval."""
    steps = -(-min(requested_ms, CONFLATE_MAX_MS) // CONFLATE_STEP_MS)
    return steps * CONFLATE_STEP_MS


# -- credentials


class KeyAndSecret(Struct, frozen=True):
    """The id of an API key and its secret. The `repr` shows neither, because it may be logged."""

    key: str
    secret: str

    @property
    def length(self) -> int:
        """The length of the longer part, in characters."""
        return max(len(self.key), len(self.secret))

    def __repr__(self) -> str:
        return "KeyAndSecret(…)"


class BearerToken(Struct, frozen=True):
    """A JSON Web Token, or a secret, which contains the id of its key."""

    text: str

    @property
    def length(self) -> int:
        """The length in characters."""
        return len(self.text)

    def __repr__(self) -> str:
        return "BearerToken(…)"


Credentials = KeyAndSecret | BearerToken


# -- actions


class Auth(Struct, frozen=True):
    """Authenticates the client."""

    credentials: Credentials
    id: Id = None


class Subscribe(Struct, frozen=True):
    """Subscribes to streams."""

    subscriptions: frozenset[Subscription]
    id: Id = None
    options: DeliveryOptions = NO_OPTIONS
    # The client's positions in some of the streams. It receives the ticks after them.
    resume: Positions = NO_POSITIONS
    # For the other streams, send all ticks from this time on.
    start: Time | None = None
    # Send the latest tick of each stream first.
    snapshot: bool = False
    # Report the current position of each stream in the reply.
    positions: bool = False

    @property
    def wants_history(self) -> bool:
        """Whether it asks for ticks that have already been published."""
        return bool(self.resume) or self.start is not None


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
    # None selects each channel's default.
    slow: SlowPolicy | UnsetType | None = UNSET
    conflate_ms: int | UnsetType = UNSET
    replay: bool | UnsetType = UNSET


class PlayTape(Struct, frozen=True):
    """Plays a tape to this client only."""

    # The client's name for the replay, by which its ticks are known.
    id: Id
    tape: str
    subscriptions: frozenset[Subscription]
    # A multiple of the original speed. Infinity means as fast as the client reads.
    speed: float = 1.0
    # The part of the tape to play. None means its beginning, or its end.
    start: Time | None = None
    end: Time | None = None


class ReplayCommand(Enum):
    """The commands for a running replay."""

    PAUSE = "replay.pause"
    RESUME = "replay.resume"
    STOP = "replay.stop"
    SEEK = "replay.seek"
    SPEED = "replay.speed"


class SteerReplay(Struct, frozen=True):
    """Steers a replay."""

    # The client's private replay. None means the shared replay of the feed.
    id: Id
    command: ReplayCommand
    # Where to continue, for `SEEK`.
    position: Time | None = None
    # The new speed, for `SPEED`.
    speed: float | None = None


class Publish(Struct, frozen=True):
    """Publishes ticks into the connection's feed."""

    # The whole message. Its ticks are parsed when it is carried out, because those without a time
    # get the time of that moment.
    message: str | bytes
    id: Id = None


Action = (
    Auth | Subscribe | Unsubscribe | ListSubscriptions | Ping | Configure | PlayTape | SteerReplay
    | Publish
)  # fmt: skip


def uses_extension(action: Action) -> bool:
    """Whether an action shows that the client knows our extensions to Alpaca's protocol.

    Only such clients can receive notices that the base protocol does not have.
    """
    if action.id is not None or isinstance(action, ListSubscriptions | Ping | Configure | Publish):
        return True
    return isinstance(action, Subscribe) and bool(
        action.wants_history or action.snapshot or action.positions or action.options != NO_OPTIONS
    )
