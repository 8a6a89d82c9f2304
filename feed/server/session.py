"""One client's session: turns its messages into replies and hub subscriptions. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, Final, NamedTuple

from msgspec import UNSET

from feed.access.action_policy import ActionPolicy, MessageLimiter
from feed.access.entitlements import OPEN_GRANT, Entitlements, Grant, Proof
from feed.fanout.encoded_ticks import EncodedTicks, message_frame, wire_format_for
from feed.fanout.hub import Hub
from feed.fanout.outbox import Outbox
from feed.fanout.streams import SubscriberGroup, choose_delivery
from feed.history.client_backfill import ClientBackfill
from feed.server.starting_points import StartingPoints
from feed.transport.loop_time import Steps, batches
from tickcast.wire import actions, messages
from tickcast.wire.actions import (
    NO_OPTIONS,
    Auth,
    Configure,
    DeliveryOptions,
    Id,
    ListSubscriptions,
    PlayTape,
    Publish,
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

# An action that is carried out in steps. All except `Configure` need the broker first.
Request = Subscribe | Unsubscribe | ListSubscriptions | Configure

Subscriptions = dict[Subscription, DeliveryOptions]


class _Change(NamedTuple):
    """A prepared change of a client's subscriptions."""

    subscriptions: Subscriptions
    group: SubscriberGroup | None
    # Streams that the client was catching up with and no longer holds.
    dropped: list[StreamKey]


class Session:
    """The state of one connection, and the replies to its messages.

    `handle_message` answers messages that need nothing else and returns the other actions. For a
    request, the caller opens the `required_streams` and runs the steps of `complete`, or calls
    `refuse` if that fails. For credentials, it looks up the grant and calls `authenticate`.

    The time for a change of subscriptions is proportional to the number of streams, so the change
    is made in steps, with other work in between. Nothing changes for the client until the last
    step, which replies and applies the whole change. The steps of one session must run one after
    the other, in the order in which they were returned.
    """

    __slots__ = (
        "_broker_heard_s", "_clock", "_defaults", "_hub", "_offered_subprotocol", "_policy",
        "_read_all_s", "_wire_format", "backfill", "encoding", "feed", "follows_replay",
        "heartbeat_ms", "must_resubscribe", "outbox", "subscriptions",
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
        limiter: MessageLimiter | None = None,
        grant: Grant | None = OPEN_GRANT,
        clock: Callable[[], Instant] = Instant.now,
    ) -> None:
        self._hub = hub
        self.outbox = outbox
        self._policy = ActionPolicy(feed, grant, subscriptions_max, limiter)
        self._clock = clock
        self._offered_subprotocol = extended
        self._defaults = NO_OPTIONS
        # How the client receives ticks: its encoding, and whether it wants stamps.
        self._wire_format = wire_format_for(encoding)
        # When the client had last read everything, and when Redis last sent anything, as known at
        # the last heartbeat; 0 before the first one.
        self._read_all_s = 0.0
        self._broker_heard_s = 0.0
        # Chosen in the handshake.
        self.feed = feed
        self.encoding = encoding
        outbox.extended = extended
        # True if `resubscribe` must be called, because the client has used an extension.
        self.must_resubscribe = False
        # The interval at which `send_heartbeat` is due; 0 means never.
        self.heartbeat_ms = 0
        # Whether the client wants the state of its feed's replay.
        self.follows_replay = False
        # Sends the history that the client has requested; None if it never did.
        self.backfill: ClientBackfill | None = None
        # With the options that the client has set for each, before its defaults.
        self.subscriptions: Subscriptions = {}

    @property
    def grant(self) -> Grant | None:
        """What the client may do; None until it has authenticated."""
        return self._policy.grant

    @property
    def extended(self) -> bool:
        """Whether the client understands the protocol's extensions."""
        return self.outbox.extended

    # -- messages from the client

    def greet(self) -> None:
        """Send the `connected` message."""
        self._send(messages.CONNECTED)

    def handle_message(
        self, message: str | bytes, now_s: float
    ) -> Request | Auth | PlayTape | SteerReplay | Publish | None:
        """Handle one message from the client: text is JSON, bytes are MessagePack.

        Returns the action if it needs more than a reply.

        Args:
            now_s: time on a monotonic clock.

        Raises:
            SessionEnded: the connection must end.
        """
        try:
            action = self._policy.check_message(message, now_s, self.subscriptions)
        except InvalidAction as error:
            if error.fault is Fault.RATE_LIMITED:
                self._hub.counters.rate_limited += 1
            self._send(messages.error(error.fault, error.detail, error.id))
            return None
        if not self.extended and actions.uses_extension(action):
            self.outbox.extended = True
            self.must_resubscribe = bool(self.subscriptions)
        match action:
            case Auth() if self.grant is not None and self.grant.proof is Proof.NOTHING:
                self._send(messages.authenticated(action.id))
                return None
            case actions.Ping():
                self._send(messages.pong(self._clock().wall, action.id))
                return None
        return action

    def required_streams(self, request: Request) -> frozenset[Subscription]:
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
        return frozenset(self._policy.narrow(dict.fromkeys(request.subscriptions | lost)))

    def complete(self, request: Request, epoch: Callable[[], str]) -> Steps:
        """Carry out a request whose streams are open, and reply to it.

        Args:
            epoch: returns the feed's current epoch.
        """
        match request:
            case Subscribe():
                while not (yield from self._subscribe(request, epoch)):
                    pass
            case Unsubscribe():
                kept = {
                    each: options
                    for each, options in self.subscriptions.items()
                    if each not in request.subscriptions
                }
                self._policy.charge_streams((yield from self._change_to(kept)), 0)
                self._confirm(request, epoch())
            case Configure():
                yield from self._configure(request)
            case ListSubscriptions():
                self._confirm(request, epoch())

    def refuse(
        self, request: Request | Auth | PlayTape | SteerReplay | Publish, fault: Fault, detail: str
    ) -> None:
        """Reply with an error to a request that can't be carried out; nothing is applied."""
        self._send(messages.error(fault, detail, request.id))

    # -- rights

    def authenticate(self, grant: Grant, id_: Id) -> Steps:
        """Accept valid credentials, for the first time or to renew a grant."""
        if self.grant is not None and not self.grant.is_renewed_by(grant):
            self._send(messages.error(Fault.ALREADY_AUTHENTICATED, id_=id_))
            return iter(())
        self._send(messages.authenticated(id_))
        return self.change_grant(grant)

    def change_grant(self, grant: Grant) -> Steps:
        """Change the client's rights; subscriptions it may no longer hold end in steps."""
        self._policy.grant = grant
        return self._drop_forbidden()

    def _drop_forbidden(self) -> Steps:
        change: _Change | None = None
        has_lost = False
        while change is None:
            if not self.subscriptions:
                return
            entitlements = self._policy.entitlements
            kept = {
                each: options
                for each, options in self.subscriptions.items()
                if entitlements.narrow(self.feed, each)
            }
            has_lost = len(kept) < len(self.subscriptions)
            change = yield from self._prepare(kept)
        self._apply(change)
        if has_lost:
            self._send(messages.subscription(self.subscriptions))

    def narrow(self, feed: str, subscriptions: Iterable[Subscription]) -> Iterable[Subscription]:
        """Reduce subscriptions of a feed to what the client may see."""
        return self._policy.entitlements.narrow_all(feed, dict.fromkeys(subscriptions))

    # -- notices to the client

    def send_heartbeat(self, broker_heard_s: float) -> None:
        """Send a heartbeat, unless the client is slow: it would only add to the waiting data.

        `lag_ms` tells how far behind the client is. It is the greatest of the delay of the last
        ticks, the time since the client had last read everything, and the time since the last
        message from Redis.

        Args:
            broker_heard_s: when that message came, on the monotonic clock; 0 if none ever came.
        """
        now = self._clock()
        waiting_bytes = self.outbox.waiting_bytes
        # If Redis never sent anything, its silence counts from the first heartbeat.
        self._broker_heard_s = broker_heard_s or self._broker_heard_s or now.monotonic_s
        if not waiting_bytes or not self._read_all_s:
            self._read_all_s = now.monotonic_s
        if self.outbox.is_slow:
            return
        stalled_s = now.monotonic_s - self._read_all_s
        silent_s = now.monotonic_s - self._broker_heard_s
        if silent_s > _SILENCE_S:
            stalled_s = max(stalled_s, silent_s)
        lag_ms = max(self._hub.lag_ms(now), int(1000 * stalled_s))
        totals = self._hub.totals(self.outbox)
        message = messages.heartbeat(
            now.wall, waiting_bytes, lag_ms,
            sent=totals.sent, merged=totals.merged, skipped=totals.skipped,
        )  # fmt: skip
        self._send(message)

    def send_replay_state(self, state: ReplayState) -> None:
        """Send the state of the feed's replay; a slow client gets it after catching up."""
        may_know = self._policy.entitlements.allows_feed(self.feed)
        if self.follows_replay and may_know and not self.outbox.is_slow:
            self._send(messages.replay(state))

    def confirm_steering(self, state: ReplayState) -> None:
        """Reply that the feed's replay has carried out the client's command."""
        self._send(messages.replay(state))

    def confirm_published(self, count: int, id_: Id) -> None:
        """Reply that the ticks of a `publish` action are published."""
        self._send(messages.published(count, id_))

    def shutdown_frame(self, retry_ms: int) -> bytes:
        """The `shutdown` notice as a frame; empty if the client does not use extensions."""
        return self._frame(messages.shutdown(retry_ms)) if self.extended else b""

    # -- the end

    def drain(self) -> None:
        """Resume sending to a client that reads again."""
        self._hub.drain(self.outbox, self._clock())

    def release(self) -> None:
        """Release everything after the client has disconnected."""
        self.outbox.close()
        self._hub.remove(self.outbox)

    # -- changes of subscriptions, in steps

    def resubscribe(self) -> Steps:
        """Prepare the subscriptions again, now that the client is known to use extensions."""
        self.must_resubscribe = False
        return self._resubscribe()

    def _resubscribe(self) -> Steps:
        yield from self._change_to(self.subscriptions)

    def _configure(self, action: Configure) -> Steps:
        conflate_ms, slow = self._defaults
        if action.conflate_ms is not UNSET:
            conflate_ms = self._hub.groups.served_interval(action.conflate_ms)
        self._defaults = DeliveryOptions(conflate_ms, slow if action.slow is UNSET else action.slow)
        if action.stamps is not UNSET:
            self._wire_format = wire_format_for(self.encoding, action.stamps)
        self._policy.charge_streams((yield from self._change_to(self.subscriptions)), 0)
        if action.heartbeat_ms is not UNSET:
            self.heartbeat_ms = action.heartbeat_ms
        if action.replay is not UNSET:
            self.follows_replay = action.replay
        message = messages.configured(
            action.id, heartbeat_ms=self.heartbeat_ms, stamps=self._wire_format.stamps,
            defaults=self._defaults, replay=self.follows_replay,
        )  # fmt: skip
        self._send(message)

    def _subscribe(
        self, request: Subscribe, epoch: Callable[[], str]
    ) -> Generator[None, None, bool]:
        """Carry out a request; return False if the rights changed meanwhile: start over."""
        held = self.subscriptions
        entitlements = self._policy.entitlements
        options = request.options
        if options.conflate_ms is not None:
            served_ms = self._hub.groups.served_interval(options.conflate_ms)
            options = options._replace(conflate_ms=served_ms)
        requested = {
            each: options.with_defaults(held.get(each, NO_OPTIONS))
            for each in request.subscriptions
        }
        points: StartingPoints | None = None
        wants_history = request.wants_history and not requested.keys() <= held.keys()
        if request.snapshot or request.positions or wants_history:
            points = StartingPoints(self._hub, self.feed, request)
            yield from points.collect(
                self._policy.narrow(requested), self._policy.narrow(held), self._wire_format,
                self._clock().wall_us,
            )  # fmt: skip
        behind = points.behind if points is not None and wants_history else None
        change = yield from self._prepare({**held, **requested}, behind, entitlements)
        if change is None:
            return False
        # The rest must run without interruption. Ticks that are about to be flushed must not follow
        # a snapshot that includes them, and positions must match the reply.
        now = self._clock()
        self._hub.flush(now)
        positions, snapshot, begun = None, list[EncodedTicks](), 0
        if points is not None:
            points.complete(change.group, self._wire_format, now.wall_us)
            positions, snapshot, begun = points.positions(), points.snapshot(), points.live_count
            if points.behind:
                self.backfill = self.backfill or ClientBackfill(self._hub, self.outbox)
                self.backfill.add_streams(points.behind)
        self._confirm(request, epoch(), change.subscriptions, options.conflate_ms, positions)
        self._policy.charge_streams(self._apply(change), begun)
        self._hub.send(self.outbox, snapshot)
        return True

    def _change_to(self, subscriptions: Subscriptions) -> Generator[None, None, int]:
        """Replace the subscriptions; return the number of streams connected for it alone."""
        while (change := (yield from self._prepare(subscriptions))) is None:
            pass
        return self._apply(change)

    def _prepare(
        self,
        subscriptions: Subscriptions,
        behind: Iterable[StreamKey] | None = None,
        entitlements: Entitlements | None = None,
    ) -> Generator[None, None, _Change | None]:
        """Prepare new subscriptions in steps.

        Args:
            behind: streams whose history the client will be sent; None if there can't be any.
            entitlements: the rights that earlier steps relied on, if there were earlier steps.

        Returns:
            The change for `_apply`; None if the client's rights have changed meanwhile.
        """
        entitlements = entitlements or self._policy.entitlements
        allowed = self._policy.narrow(subscriptions)
        yield
        deliveries = frozenset(
            (
                each,
                choose_delivery(each.channel, options.with_defaults(self._defaults), self.extended),
            )
            for each, options in allowed.items()
        )
        dropped: list[StreamKey] = []
        backfill = self.backfill
        if backfill is not None and backfill.behind:
            # History sent meanwhile would be counted for the old subscriptions.
            backfill.is_paused = True
            coverage = Coverage(allowed)
            for keys in batches(list(backfill.behind)):
                dropped += [key for key in keys if not coverage.covers(key)]
                yield
            behind = {*(behind or ()), *backfill.behind.keys()}.difference(dropped)
        group = yield from self._hub.prepare(
            self.outbox, self.feed, self._wire_format, deliveries,
            None if behind is None else set(behind),
        )  # fmt: skip
        if self._policy.entitlements is not entitlements:
            if group is not None:
                self._hub.groups.discard(group)
            return None
        return _Change(subscriptions, group, dropped)

    def _apply(self, change: _Change) -> int:
        """Apply a change; return the number of streams connected for this client alone."""
        self.subscriptions = change.subscriptions
        if self.backfill is not None:
            self.backfill.drop_streams(change.dropped)
            self.backfill.is_paused = False
        group = change.group
        connected = len(group.outputs) if group is not None and not group.members else 0
        self._hub.switch(self.outbox, group, self._clock())
        return connected

    def _confirm(
        self,
        request: Request,
        epoch: str,
        subscriptions: Subscriptions | None = None,
        conflate_ms: int | None = None,
        positions: list[dict[str, Any]] | None = None,
    ) -> None:
        held = self.subscriptions if subscriptions is None else subscriptions
        # Alpaca's clients would not expect the field.
        shown_epoch = epoch if self._offered_subprotocol or request.id is not None else None
        self._send(messages.subscription(held, shown_epoch, request.id, conflate_ms, positions))

    def _send(self, message: object) -> None:
        self.outbox.push(self._frame(message))

    def _frame(self, message: object) -> bytes:
        return message_frame(message, self.encoding)
