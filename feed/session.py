"""One client's conversation: its messages in, replies and hub subscriptions out. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from feed import actions, protocol
from feed.access.grant import UNASKED, Grant
from feed.actions import Auth, Configure, ListSubscriptions, Subscribe, Unsubscribe
from feed.catchup import CatchUp, Origin
from feed.conduct import Conduct
from feed.delivery import NO_OPTIONS, Options, choose_delivery
from feed.encoding import Encoding
from feed.errors import Fault, InvalidAction
from feed.fields import Id
from feed.follower import Follower
from feed.hub import Hub
from feed.lags import Stall
from feed.outbox import Outbox
from feed.pieces import Chunk, form_of, message_frame
from feed.playback import State
from feed.positions import Position, build_positions
from feed.replay_actions import Play, Steer
from feed.rights import Rights
from feed.streams import Stream
from feed.ticks import Coverage, StreamKey, Subscription
from feed.times import Moment

Request = Subscribe | Unsubscribe | ListSubscriptions
"""An action whose answer needs the broker: its streams open, or the feed's epoch known."""


class Session:
    """What one connection has asked for so far, and the answers to what it asks next.

    `read` answers what can be answered at once and returns the rest. For a request the caller sees
    to it that the streams in `wanted_by(request)` are open, and then calls `complete`, or `refuse`
    if it can't; for credentials it finds out what they grant, and calls `admit`.

    Attributes:
        feed, encoding: chosen in the handshake.
        subscriptions: what it holds, and what it has said about each.
        heartbeat_ms: how often `beat` is due; 0 is never.
        follows_replay: whether it wants to know where the replay of its feed stands.
        follower: what catches it up with the past it has asked for; None where it never did.
    """

    __slots__ = (
        "_clock", "_defaults", "_hub", "_offered_subprotocol", "_outbox", "_rights", "_stall",
        "_stamps", "encoding", "feed", "follower", "follows_replay", "heartbeat_ms",
        "subscriptions",
    )  # fmt: skip

    def __init__(
        self,
        hub: Hub,
        outbox: Outbox,
        feed: str,
        encoding: Encoding,
        *,
        extended: bool,
        subscriptions_max: int,
        conduct: Conduct | None = None,
        grant: Grant | None = UNASKED,
        clock: Callable[[], Moment] = Moment.now,
    ) -> None:
        self._hub = hub
        self._outbox = outbox
        self._rights = Rights(feed, grant, subscriptions_max, conduct)
        self._clock = clock
        self._offered_subprotocol = extended
        self._defaults = NO_OPTIONS
        self._stamps = False
        self._stall = Stall()
        self.feed = feed
        self.encoding = encoding
        outbox.extended = extended
        self.heartbeat_ms = 0
        self.follows_replay = False
        self.follower: Follower | None = None
        self.subscriptions: dict[Subscription, Options] = {}

    @property
    def grant(self) -> Grant | None:
        """What the client may do; None until it has said who it is."""
        return self._rights.grant

    @property
    def extended(self) -> bool:
        """Whether the client knows our extensions."""
        return self._outbox.extended

    @property
    def waiting_bytes(self) -> int:
        """What the client has not taken yet."""
        return self._outbox.waiting_bytes

    @property
    def is_slow(self) -> bool:
        """Whether the client gets less than it asked for, because it does not keep up."""
        return self._outbox.is_slow

    def greet(self) -> None:
        """Say the server's first words."""
        self._say(protocol.CONNECTED)

    def read(self, message: str | bytes) -> Request | Auth | Play | Steer | None:
        """Take one message of the client: text is JSON, bytes are MessagePack.

        Raises:
            Ended: the conversation is over.
        """
        try:
            action = self._rights.read(message, self._clock().steady_s, self.subscriptions)
        except InvalidAction as error:
            if error.fault is Fault.RATE_LIMITED:
                self._hub.counters.rate_limited += 1
            self._say(protocol.error(error.fault, error.detail, error.id))
            return None
        if not self.extended and actions.uses_extension(action):
            self._outbox.extended = True
            self._hold(self.subscriptions)
        match action:
            case Auth() if self.grant is UNASKED:
                self._say(protocol.authenticated(action.id))
                return None
            case actions.Ping():
                self._say(protocol.pong(self._clock().wall, action.id))
                return None
            case Configure():
                self._configure(action)
                return None
        return action

    def admit(self, grant: Grant, id_: Id) -> None:
        """The client has shown good credentials, for the first time or anew."""
        if self.grant is not None and not self.grant.is_renewed_by(grant):
            self._say(protocol.error(Fault.ALREADY_AUTHENTICATED, id_=id_))
            return
        self._say(protocol.authenticated(id_))
        self.entitle(grant)

    def entitle(self, grant: Grant) -> None:
        """From now on the client may do this. What it may no longer hold, it no longer does."""
        self._rights.grant = grant
        kept = {
            each: options
            for each, options in self.subscriptions.items()
            if grant.entitlements.narrow(self.feed, each)
        }
        has_lost = kept.keys() != self.subscriptions.keys()
        if self.subscriptions:
            self._hold(kept)
        if has_lost:
            self._say(protocol.subscription(kept))

    def wanted_by(self, request: Request) -> frozenset[Subscription]:
        """The subscriptions whose streams must be open before `complete`."""
        if not isinstance(request, Subscribe):
            return frozenset()
        # A stream under a wildcard that the store has lost: its client must hear of that.
        named = request.subscriptions | request.resume.symbols
        return frozenset(self._rights.narrow(dict.fromkeys(named)))

    def complete(self, request: Request, epoch: str) -> None:
        """Carry a request out, now that its streams are open, and answer it."""
        match request:
            case Subscribe():
                self._subscribe(request, epoch)
            case Unsubscribe():
                gone = request.subscriptions
                self._hold({each: self.subscriptions[each] for each in self.subscriptions
                            if each not in gone})  # fmt: skip
                self._confirm(request, epoch)
            case ListSubscriptions():
                self._confirm(request, epoch)

    def narrow(self, feed: str, wanted: Iterable[Subscription]) -> Iterable[Subscription]:
        """What of some subscriptions of a feed the client may see."""
        return self._rights.entitlements.narrow_all(feed, dict.fromkeys(wanted))

    def refuse(self, request: Request | Play | Steer, fault: Fault, detail: str) -> None:
        """Answer a request that can't be carried out; nothing of it is applied."""
        self._say(protocol.error(fault, detail, request.id))

    def beat(self, broker_connected: bool) -> None:
        """Send a heartbeat, unless so much is waiting that it would only add to it.

        Its `lag_ms` is how far behind the client is: the delay of the ticks last sent, the time
        since it was last found to have taken everything, or since the broker was last found
        connected.
        """
        now = self._clock()
        self._stall.look(
            now.steady_s,
            broker_connected=broker_connected,
            all_taken=not self._outbox.waiting_bytes,
        )
        if self._outbox.is_slow:
            return
        lag_ms = max(self._hub.arrivals.lag_ms(now), self._stall.lasts_ms(now.steady_s))
        totals = self._hub.totals(self._outbox)
        self._say(protocol.heartbeat(now.wall, self._outbox.waiting_bytes, lag_ms, totals))

    def tell_replay(self, state: State) -> None:
        """Say where the replay stands; one that is slow is told when it has caught up."""
        may_know = self._rights.entitlements.allows_feed(self.feed)
        if self.follows_replay and may_know and not self._outbox.is_slow:
            self._say(protocol.replay(state))

    def answer_steering(self, state: State) -> None:
        """The replay of the feed has done what the client asked for."""
        self._say(protocol.replay(state))

    def drain(self) -> None:
        """The client reads again."""
        self._hub.drain(self._outbox, self._clock())

    def leave(self) -> None:
        """The client is gone."""
        self._outbox.close()
        self._hub.remove(self._outbox)

    def farewell(self, retry_ms: int) -> bytes:
        """The last words of a server that shuts down, for clients that understand them."""
        return self._frame(protocol.shutdown(retry_ms)) if self.extended else b""

    def _configure(self, action: Configure) -> None:
        if action.heartbeat_ms is not UNSET:
            self.heartbeat_ms = action.heartbeat_ms
        if action.stamps is not UNSET:
            self._stamps = action.stamps
        if action.replay is not UNSET:
            self.follows_replay = action.replay
        conflate_ms, slow = self._defaults
        self._defaults = Options(
            conflate_ms if action.conflate_ms is UNSET else action.conflate_ms,
            slow if action.slow is UNSET else action.slow,
        )
        self._hold(self.subscriptions)
        self._say(
            protocol.configured(
                action.id,
                heartbeat_ms=self.heartbeat_ms,
                stamps=self._stamps,
                defaults=self._defaults,
                replay=self.follows_replay,
            )
        )

    def _subscribe(self, request: Subscribe, epoch: str) -> None:
        # Ticks still on their way to others must not follow a snapshot that includes them.
        self._hub.flush(self._clock())
        held = self.subscriptions
        new = self._hub.newly_covered(
            self.feed,
            self._rights.narrow(dict.fromkeys(request.subscriptions)),
            besides=self._rights.narrow(held),
        )
        behind, present = _sort_out(request, new)
        asked = {
            each: request.options.or_else(held.get(each, NO_OPTIONS))
            for each in request.subscriptions
        }
        wanted = {**held, **asked}
        positions = None
        if request.positions:
            positions = build_positions(
                (stream.key, Position(stream.epoch, stream.seq)) for stream in present if stream.seq
            )
        self._confirm(request, epoch, wanted, request.options.conflate_ms, positions)
        if behind:
            self.follower = self.follower or Follower(self._hub, self._outbox)
            self.follower.add(behind)
        self._hold(wanted)
        if request.snapshot:
            self._hub.send(self._outbox, [*_snapshot(present)], self._clock())

    def _hold(self, wanted: dict[Subscription, Options]) -> None:
        self.subscriptions = wanted
        allowed = self._rights.narrow(wanted)
        deliveries = frozenset(
            (each, choose_delivery(each.channel, options.or_else(self._defaults), self.extended))
            for each, options in allowed.items()
        )
        form = form_of(self.encoding, self._stamps)
        behind: frozenset[StreamKey] = frozenset()
        if self.follower is not None and self.follower.behind:
            coverage = Coverage(allowed)
            self.follower.drop(key for key in self.follower.behind if not coverage.covers(key))
            behind = frozenset(self.follower.behind)
        self._hub.subscribe(self._outbox, self.feed, form, deliveries, self._clock(), behind)

    def _confirm(
        self,
        request: Request,
        epoch: str,
        wanted: dict[Subscription, Options] | None = None,
        conflate_ms: int | None = None,
        positions: list[dict[str, Any]] | None = None,
    ) -> None:
        held = self.subscriptions if wanted is None else wanted
        told = epoch if self._offered_subprotocol or request.id is not None else None
        self._say(protocol.subscription(held, told, request.id, conflate_ms, positions))

    def _say(self, message: object) -> None:
        self._outbox.push(self._frame(message))

    def _frame(self, message: object) -> bytes:
        return message_frame(message, self.encoding)


def _sort_out(
    request: Subscribe, streams: Iterable[Stream]
) -> tuple[dict[StreamKey, CatchUp], list[Stream]]:
    """The streams of which the past is wanted, and those that begin with the present."""
    behind: dict[StreamKey, CatchUp] = {}
    present: list[Stream] = []
    origin = Origin(request.id)
    for stream in streams:
        position = request.resume.of(stream.key)
        if position is None and request.start is None:
            present.append(stream)
        else:
            behind[stream.key] = CatchUp(
                position, request.start if position is None else None, origin
            )
    return behind, present


def _snapshot(streams: Iterable[Stream]) -> Iterator[Chunk]:
    """The latest tick of each stream that has one, marked as such."""
    for stream in streams:
        if stream.latest is not None:
            yield Chunk(stream.key, [replace(stream.latest, snap=True)], [stream.published_us])
