"""One client's session: turns its messages into replies and hub subscriptions. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, Final, NamedTuple

from msgspec import UNSET

from feed.access.action_policy import ActionPolicy
from feed.access.conduct import MessageLimiter, price_of_streams
from feed.access.entitlements import Entitlements
from feed.access.grant import OPEN_GRANT, Grant
from feed.fanout.encoded_ticks import WireFormat, message_frame, wire_format_for
from feed.fanout.hub import Hub
from feed.fanout.outbox import Outbox
from feed.fanout.streams import SubscriberGroup, choose_delivery
from feed.history.follower import ClientBackfill
from feed.server.starting_points import StartingPoints
from feed.transport.slices import Steps, batches
from tickcast.wire import actions
from tickcast.wire import messages as protocol
from tickcast.wire.actions import (
    NO_OPTIONS,
    Auth,
    Configure,
    DeliveryOptions,
    Id,
    ListSubscriptions,
    PlayTape,
    SteerReplay,
    Subscribe,
    Unsubscribe,
)
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import Fault, InvalidAction
from tickcast.wire.playback import ReplayState
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import Instant

# Silence from Redis that is still normal: heartbeats pass through it twice a second.
_SILENCE_S: Final = 1.0

Request = Subscribe | Unsubscribe | ListSubscriptions | Configure
"""An action that is carried out in steps; all except `Configure` need the broker first."""


class Staleness:
    """How long a client has been stalled, because it does not read or because Redis is silent."""

    __slots__ = ("_broker_heard_s", "_caught_up_s")

    def __init__(self) -> None:
        self._broker_heard_s = self._caught_up_s = 0.0

    def update(self, now_s: float, *, broker_heard_s: float, all_read: bool) -> None:
        """Record the current state.

        Args:
            now_s: time on a steady clock.
            broker_heard_s: when the last message came from Redis; 0 if none ever came. The stall
                counts from then, or from the first call.
            all_read: whether nothing waits for the client; assumed True at the first call.
        """
        self._broker_heard_s = broker_heard_s or self._broker_heard_s or now_s
        if all_read or not self._caught_up_s:
            self._caught_up_s = now_s

    def lasts_ms(self, now_s: float) -> int:
        """The duration of the stall in ms; 0 if there is none."""
        silent_s = now_s - self._broker_heard_s
        if silent_s <= _SILENCE_S:
            silent_s = 0.0
        return int(1000 * max(now_s - self._caught_up_s, silent_s))


class _Change(NamedTuple):
    """A prepared change of a client's subscriptions.

    Attributes:
        gone: streams that the client was catching up with and no longer holds.
    """

    wanted: dict[Subscription, DeliveryOptions]
    audience: SubscriberGroup | None
    gone: list[StreamKey]


class Session:
    """The state of one connection, and the replies to its messages.

    `read` answers messages that need nothing else and returns the other actions. For a request, the
    caller opens the streams in `wanted_by(request)` and runs the steps of `complete`, or calls
    `refuse` if that fails. For credentials, it looks up the grant and calls `admit`.

    The time for a change of subscriptions is proportional to the number of streams, so the change
    is made in steps, with other work in between. Nothing changes for the client until the last
    step, which replies and applies the whole change. The steps of one session must run one after
    the other, in the order in which they were returned.

    Attributes:
        feed, encoding: chosen in the handshake.
        subscriptions: the client's subscriptions, with the options it has set for each.
        must_renew: True if `renew` must be called, because the client has used an extension.
        heartbeat_ms: interval at which `beat` is due; 0 means never.
        follows_replay: whether the client wants the state of its feed's replay.
        follower: sends the past that the client has asked for; None if it never asked.
    """

    __slots__ = (
        "_clock", "_defaults", "_hub", "_offered_subprotocol", "_outbox", "_rights", "_stall",
        "_stamps", "encoding", "feed", "follower", "follows_replay", "heartbeat_ms", "must_renew",
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
        conduct: MessageLimiter | None = None,
        grant: Grant | None = OPEN_GRANT,
        clock: Callable[[], Instant] = Instant.now,
    ) -> None:
        self._hub = hub
        self._outbox = outbox
        self._rights = ActionPolicy(feed, grant, subscriptions_max, conduct)
        self._clock = clock
        self._offered_subprotocol = extended
        self._defaults = NO_OPTIONS
        self._stamps = False
        self._stall = Staleness()
        self.feed = feed
        self.encoding = encoding
        outbox.extended = extended
        self.must_renew = False
        self.heartbeat_ms = 0
        self.follows_replay = False
        self.follower: ClientBackfill | None = None
        self.subscriptions: dict[Subscription, DeliveryOptions] = {}

    @property
    def grant(self) -> Grant | None:
        """What the client may do; None until it has authenticated."""
        return self._rights.grant

    @property
    def extended(self) -> bool:
        """Whether the client understands the protocol's extensions."""
        return self._outbox.extended

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the client has not taken yet."""
        return self._outbox.waiting_bytes

    @property
    def is_slow(self) -> bool:
        """Whether the client gets less than it asked for, because it does not keep up."""
        return self._outbox.is_slow

    def greet(self) -> None:
        """Send the `connected` message."""
        self._say(protocol.CONNECTED)

    def read(self, message: str | bytes) -> Request | Auth | PlayTape | SteerReplay | None:
        """Take one message from the client: text is JSON, bytes are MessagePack.

        Returns the action if it needs more than a reply.

        Raises:
            Ended: the connection must end.
        """
        try:
            action = self._rights.read(message, self._clock().monotonic_s, self.subscriptions)
        except InvalidAction as error:
            if error.fault is Fault.RATE_LIMITED:
                self._hub.counters.rate_limited += 1
            self._say(protocol.error(error.fault, error.detail, error.id))
            return None
        if not self.extended and actions.uses_extension(action):
            self._outbox.extended = True
            self.must_renew = bool(self.subscriptions)
        match action:
            case Auth() if self.grant is OPEN_GRANT:
                self._say(protocol.authenticated(action.id))
                return None
            case actions.Ping():
                self._say(protocol.pong(self._clock().wall, action.id))
                return None
        return action

    def admit(self, grant: Grant, id_: Id) -> Steps:
        """Accept valid credentials, for the first time or to renew a grant."""
        if self.grant is not None and not self.grant.is_renewed_by(grant):
            self._say(protocol.error(Fault.ALREADY_AUTHENTICATED, id_=id_))
            return iter(())
        self._say(protocol.authenticated(id_))
        return self.entitle(grant)

    def entitle(self, grant: Grant) -> Steps:
        """Change the client's rights; subscriptions it may no longer hold end in steps."""
        self._rights.grant = grant
        return self._drop_forbidden()

    def _drop_forbidden(self) -> Steps:
        while True:
            allows = self._rights.entitlements
            kept = {
                each: options
                for each, options in self.subscriptions.items()
                if allows.narrow(self.feed, each)
            }
            has_lost = kept.keys() != self.subscriptions.keys()
            if not self.subscriptions:
                return
            change = yield from self._prepare(kept)
            if change is not None:
                self._apply(change)
                break
        if has_lost:
            self._say(protocol.subscription(kept))

    def renew(self) -> Steps:
        """Prepare the subscriptions again, now that the client is known to use extensions."""
        self.must_renew = False
        return self._hold_anew()

    def _hold_anew(self) -> Steps:
        while (change := (yield from self._prepare(self.subscriptions))) is None:
            pass
        self._apply(change)

    def wanted_by(self, request: Request) -> frozenset[Subscription]:
        """The subscriptions whose streams must be open before `complete`."""
        if not isinstance(request, Subscribe):
            return frozenset()
        # A stream that is named in `resume` and held by a wildcard may have been lost by the store.
        # The client must be notified, so the stream is opened too.
        lost = {
            each
            for each in request.resume.named
            if not self._hub.is_open(StreamKey(self.feed, *each))
        }
        return frozenset(self._rights.narrow(dict.fromkeys(request.subscriptions | lost)))

    def complete(self, request: Request, epoch: Callable[[], str]) -> Steps:
        """Carry out a request whose streams are open, and reply to it.

        Args:
            epoch: returns the feed's current epoch.
        """
        while not (yield from self._carry_out(request, epoch)):
            pass

    def narrow(self, feed: str, wanted: Iterable[Subscription]) -> Iterable[Subscription]:
        """Reduce subscriptions of a feed to what the client may see."""
        return self._rights.entitlements.narrow_all(feed, dict.fromkeys(wanted))

    def refuse(
        self, request: Request | Auth | PlayTape | SteerReplay, fault: Fault, detail: str
    ) -> None:
        """Reply with an error to a request that can't be carried out; nothing is applied."""
        self._say(protocol.error(fault, detail, request.id))

    def beat(self, broker_heard_s: float) -> None:
        """Send a heartbeat, unless the client is slow: it would only add to the waiting data.

        `lag_ms` tells how far behind the client is. It is the greatest of the delay of the last
        ticks, the time since the client had last taken everything, and the time since the last
        message from Redis.

        Args:
            broker_heard_s: when that message came, on the steady clock; 0 if none ever came.
        """
        now = self._clock()
        self._stall.update(
            now.monotonic_s,
            broker_heard_s=broker_heard_s,
            all_read=not self._outbox.waiting_bytes,
        )
        if self._outbox.is_slow:
            return
        lag_ms = max(self._hub.lag_ms(now), self._stall.lasts_ms(now.monotonic_s))
        totals = self._hub.totals(self._outbox)
        self._say(
            protocol.heartbeat(
                now.wall,
                self._outbox.waiting_bytes,
                lag_ms,
                sent=totals.sent,
                merged=totals.merged,
                skipped=totals.skipped,
            )
        )

    def send_replay_state(self, state: ReplayState) -> None:
        """Send the state of the feed's replay; a slow client gets it after catching up."""
        may_know = self._rights.entitlements.allows_feed(self.feed)
        if self.follows_replay and may_know and not self._outbox.is_slow:
            self._say(protocol.replay(state))

    def answer_steering(self, state: ReplayState) -> None:
        """Reply that the feed's replay has carried out the client's command."""
        self._say(protocol.replay(state))

    def drain(self) -> None:
        """Resume sending to a client that reads again."""
        self._hub.drain(self._outbox, self._clock())

    def leave(self) -> None:
        """Release everything after the client has disconnected."""
        self._outbox.close()
        self._hub.remove(self._outbox)

    def fail(self) -> None:
        """End the connection after a bug in serving the client."""
        self._outbox.fail()

    def farewell(self, retry_ms: int) -> bytes:
        """The `shutdown` notice as a frame; empty if the client does not use extensions."""
        return self._frame(protocol.shutdown(retry_ms)) if self.extended else b""

    def _carry_out(self, request: Request, epoch: Callable[[], str]) -> Generator[None, None, bool]:
        """Carry out a request; return False if the rights changed meanwhile: start over."""
        match request:
            case Subscribe():
                return (yield from self._subscribe(request, epoch))
            case Unsubscribe():
                return (yield from self._unsubscribe(request, epoch))
            case Configure():
                return (yield from self._configure(request))
            case ListSubscriptions():
                self._confirm(request, epoch())
        return True

    def _configure(self, action: Configure) -> Generator[None, None, bool]:
        conflate_ms, slow = self._defaults
        self._defaults = DeliveryOptions(
            conflate_ms
            if action.conflate_ms is UNSET
            else self._hub.groups.served_interval(action.conflate_ms),
            slow if action.slow is UNSET else action.slow,
        )
        if action.stamps is not UNSET:
            self._stamps = action.stamps
        change = yield from self._prepare(self.subscriptions)
        if change is None:
            return False
        if action.heartbeat_ms is not UNSET:
            self.heartbeat_ms = action.heartbeat_ms
        if action.replay is not UNSET:
            self.follows_replay = action.replay
        self._charge(self._apply(change))
        self._say(
            protocol.configured(
                action.id,
                heartbeat_ms=self.heartbeat_ms,
                stamps=self._stamps,
                defaults=self._defaults,
                replay=self.follows_replay,
            )
        )
        return True

    def _unsubscribe(
        self, request: Unsubscribe, epoch: Callable[[], str]
    ) -> Generator[None, None, bool]:
        gone = request.subscriptions
        kept = {each: said for each, said in self.subscriptions.items() if each not in gone}
        change = yield from self._prepare(kept)
        if change is None:
            return False
        self._charge(self._apply(change))
        self._confirm(request, epoch())
        return True

    def _subscribe(
        self, request: Subscribe, epoch: Callable[[], str]
    ) -> Generator[None, None, bool]:
        held = self.subscriptions
        rights = self._rights.entitlements
        options = request.options
        if options.conflate_ms is not None:
            served_ms = self._hub.groups.served_interval(options.conflate_ms)
            options = options._replace(conflate_ms=served_ms)
        asked = {
            each: options.with_defaults(held.get(each, NO_OPTIONS))
            for each in request.subscriptions
        }
        wanted = {**held, **asked}
        form = self._form
        points: StartingPoints | None = None
        wants_past = request.wants_history and not asked.keys() <= held.keys()
        if request.snapshot or request.positions or wants_past:
            points = StartingPoints(
                self._hub, self.feed, request,
                self._rights.narrow(asked), self._rights.narrow(held),
            )  # fmt: skip
            yield from points.collect(form, self._clock().wall_us)
        behind = points.behind if points is not None and wants_past else None
        change = yield from self._prepare(wanted, behind, rights)
        if change is None:
            return False
        # The rest must run without interruption. Ticks that are about to be flushed must not follow
        # a snapshot that includes them, and positions must match the reply.
        now = self._clock()
        self._hub.flush(now)
        positions = None
        if points is not None:
            points.complete(change.audience, form, now.wall_us)
            positions = points.positions() if request.positions else None
        self._confirm(request, epoch(), wanted, options.conflate_ms, positions)
        if points is not None and points.behind:
            self.follower = self.follower or ClientBackfill(self._hub, self._outbox)
            self.follower.add(points.behind)
        self._charge(self._apply(change), points.present if points is not None else 0)
        if points is not None and request.snapshot:
            self._hub.send(self._outbox, points.snapshot())
        return True

    def _charge(self, connected: int, begun: int = 0) -> None:
        self._rights.charge(price_of_streams(connected, begun))

    @property
    def _form(self) -> WireFormat:
        return wire_format_for(self.encoding, self._stamps)

    def _prepare(
        self,
        wanted: dict[Subscription, DeliveryOptions],
        behind: Iterable[StreamKey] | None = None,
        rights: Entitlements | None = None,
    ) -> Generator[None, None, _Change | None]:
        """Prepare new subscriptions in steps.

        Args:
            behind: streams whose past the client will be sent; None if there can't be any.
            rights: the rights that earlier steps relied on, if there were earlier steps.

        Returns:
            The change for `_apply`; None if the client's rights have changed meanwhile.
        """
        rights = rights or self._rights.entitlements
        allowed = self._rights.narrow(wanted)
        yield
        deliveries = frozenset(
            (
                each,
                choose_delivery(each.channel, options.with_defaults(self._defaults), self.extended),
            )
            for each, options in allowed.items()
        )
        gone: list[StreamKey] = []
        follower = self.follower
        if follower is not None and follower.behind:
            # Past ticks sent meanwhile would be counted for the old subscriptions.
            follower.paused = True
            coverage = Coverage(allowed)
            for keys in batches(list(follower.behind)):
                gone += [key for key in keys if not coverage.covers(key)]
                yield
            behind = {*(behind or ()), *follower.behind.keys()}.difference(gone)
        audience = yield from self._hub.prepare(
            self._outbox, self.feed, self._form, deliveries, None if behind is None else set(behind)
        )
        if self._rights.entitlements is not rights:
            if audience is not None:
                self._hub.groups.discard(audience)
            return None
        return _Change(wanted, audience, gone)

    def _apply(self, change: _Change) -> int:
        """Apply a change; return the number of streams connected for this client alone."""
        self.subscriptions = change.wanted
        if self.follower is not None:
            self.follower.drop(change.gone)
            self.follower.paused = False
        connected = 0
        if change.audience is not None and not change.audience.members:
            connected = len(change.audience.outputs)
        self._hub.switch(self._outbox, change.audience, self._clock())
        return connected

    def _confirm(
        self,
        request: Request,
        epoch: str,
        wanted: dict[Subscription, DeliveryOptions] | None = None,
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
