"""One WebSocket connection: admits the client, and connects its session, outbox and socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

from starlette.responses import PlainTextResponse, Response
from starlette.websockets import WebSocket

from feed.access.action_policy import MessageLimiter
from feed.access.admission import AdmittedClient
from feed.fanout.encoded_ticks import message_frame
from feed.fanout.outbox import Outbox
from feed.replay.scheduler import ReplayClient
from feed.server.engine import Engine
from feed.server.publishing import PublishDenied, TooFast
from feed.server.session import Request, Session
from feed.transport.handshake import EXTENSION, AsgiSink, WebSocketProtocol
from feed.transport.loop_time import Steps
from tickcast.broker.request_publisher import Overloaded
from tickcast.tasks import cancel_and_wait
from tickcast.wire import messages as protocol
from tickcast.wire.actions import Auth, Configure, Id, PlayTape, Publish, SteerReplay
from tickcast.wire.errors import (
    CLOSE_CODES,
    AuthFailed,
    BrokerUnavailable,
    BrokerUnsuitable,
    CloseCode,
    Fault,
    HandshakeRefused,
    InvalidAction,
    InvalidTick,
    ReplayFailed,
    SessionEnded,
    TooManyConnections,
    TryAgain,
    describe_close_code,
)
from tickcast.wire.subscriptions import Subscription
from tickcast.wire.tick_input import parse_published
from tickcast.wire.times import Time

_RETRY_SPREAD_MS: Final = (100, 2000)
# The longest time to wait for a grant to expire before checking it again.
_GRANT_CHECK_S: Final = 3600.0

logger = logging.getLogger("tickcast.connection")


async def serve_connection(websocket: WebSocket, feed: str, engine: Engine) -> None:
    """Answer a handshake on one feed and serve the client until it disconnects."""
    try:
        client = await engine.admission.admit(websocket.scope)
    except HandshakeRefused as refusal:
        await websocket.send_denial_response(denial(refusal))
        return
    encoding, subprotocol = protocol.choose_encoding(
        websocket.scope["subprotocols"],
        websocket.headers.get("content-type", ""),
        websocket.query_params.get("encoding"),
    )
    try:
        await websocket.accept(subprotocol=subprotocol)
    except BaseException:
        engine.admission.release(client)
        raise
    raw: WebSocketProtocol | None = websocket.scope["extensions"].get(EXTENSION)
    sink = raw or AsgiSink(websocket)
    connection = Connection(sink, engine, client)
    settings = engine.settings
    session = Session(
        engine.hub,
        connection.outbox,
        feed,
        encoding,
        extended=subprotocol is not None,
        subscriptions_max=settings.subscriptions_max,
        limiter=MessageLimiter(settings.messages_per_s, settings.messages_burst),
        grant=client.grant,
    )
    connection.begin(session)
    if isinstance(sink, WebSocketProtocol):
        sink.address_limiter = engine.admission.limiter_of(websocket.scope)
        sink.hand_over(connection.receive, connection.end)
        return
    sender = asyncio.create_task(sink.run())
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await connection.serve(websocket)
    finally:
        await cancel_and_wait([sender])


def denial(refusal: HandshakeRefused) -> Response:
    """Build the HTTP response that explains why a handshake was refused."""
    headers = {}
    if refusal.retry_after_s:
        headers["Retry-After"] = str(refusal.retry_after_s)
        # If the connection stayed open, the client would send its next request at once.
        headers["Connection"] = "close"
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return PlainTextResponse(f"{refusal}\n", refusal.status, headers)


class Connection:
    """Runs one client's session on its socket."""

    __slots__ = ("_began_s", "_client", "_deadline", "_engine", "_heartbeat", "_replay_client",
                 "_session", "_sink", "outbox")  # fmt: skip

    def __init__(
        self, sink: WebSocketProtocol | AsgiSink, engine: Engine, client: AdmittedClient
    ) -> None:
        self._sink = sink
        self._engine = engine
        self._client = client
        self._began_s = time.monotonic()
        # Sends the next heartbeat.
        self._heartbeat: asyncio.TimerHandle | None = None
        # Ends the connection of a client that does not authenticate, or whose grant expires.
        self._deadline: asyncio.TimerHandle | None = None
        # Set on first use: few clients play tapes.
        self._replay_client: ReplayClient | None = None
        self.outbox = Outbox(
            sink, engine.settings.outbox_max_bytes, self._close_slow_client, self._close_failed
        )

    def begin(self, session: Session) -> None:
        """Greet the client. Then pass its messages to `receive`, and call `end` when it is gone."""
        self._session = session
        self._sink.on_drain = self._on_drain
        self._sink.on_shutdown = self._shutdown_frame
        self._sink.on_flood = self._close_flood
        self._client.on_change = self._check_grant
        self._engine.hub.counters.connections += 1
        self._engine.sessions.add(session)
        session.greet()
        self._set_deadline()
        logger.info("opened", extra=self._log_fields())

    def receive(self, message: str | bytes) -> Coroutine[Any, Any, None] | None:
        """Answer a message. If it returns a coroutine, await that before the next message."""
        try:
            request = self._session.handle_message(message, time.monotonic())
            if self._session.must_resubscribe:
                self._start(self._session.resubscribe())
            if isinstance(request, SteerReplay) and request.id is not None:
                self._steer_tape(request)
                return None
        except SessionEnded as end:
            self._close(end.fault, str(end))
            return None
        except Exception:
            self._fail()
            return None
        return self._carry_out(request) if request is not None else None

    async def serve(self, websocket: WebSocket) -> None:
        """Process messages from an ASGI server's `receive` until either side disconnects."""
        code = CloseCode.INTERNAL_ERROR.value
        try:
            while (event := await websocket.receive())["type"] != "websocket.disconnect":
                text: str | None = event.get("text")
                if (work := self.receive(event["bytes"] if text is None else text)) is not None:
                    await work
            code = event["code"]
        finally:
            self.end(code)

    def end(self, code: int) -> None:
        """Release everything that belongs to the connection, after the client is gone."""
        engine, session = self._engine, self._session
        engine.slices.discard(session)
        engine.sessions.discard(session)
        engine.feed_replays.unfollow(session)
        engine.hub.counters.closed[code] += 1
        totals = engine.hub.totals(self.outbox)
        session.release()
        if session.backfill is not None:
            engine.backfill.remove(session.backfill)
        if self._replay_client is not None:
            engine.private_replays.forget(self._replay_client)
        for timer in (self._heartbeat, self._deadline):
            if timer is not None:
                timer.cancel()
        self._heartbeat = self._deadline = self._replay_client = None
        engine.admission.release(self._client)
        logger.info(
            "closed",
            extra=self._log_fields() | {
                "code": code,
                "reason": describe_close_code(code),
                "ticks": totals.sent,
                "bytes": totals.bytes,
                "duration_s": round(time.monotonic() - self._began_s, 3),
            },
        )  # fmt: skip

    # -- actions

    async def _carry_out(self, action: Request | Auth | PlayTape | SteerReplay | Publish) -> None:
        session = self._session
        try:
            match action:
                case Auth():
                    await self._authenticate(action)
                case PlayTape():
                    client = self._replaying_client()
                    await self._engine.private_replays.play(client, action, session.narrow)
                case SteerReplay():
                    await self._steer_feed(action)
                case Publish():
                    await self._publish(action)
                case _:
                    await self._complete(action)
        except InvalidAction as error:
            session.refuse(action, error.fault, error.detail)
        except (BrokerUnavailable, BrokerUnsuitable) as error:
            logger.warning("could not serve a request: %s", error)
            session.refuse(action, Fault.BROKER_UNAVAILABLE, "try again later")
        except Exception:
            self._fail()

    async def _complete(self, request: Request) -> None:
        session, engine = self._session, self._engine
        heartbeat_ms, follows_replay = session.heartbeat_ms, session.follows_replay
        if isinstance(request, Configure):
            await self._run(session.complete(request, str))
        else:
            required: set[Subscription] = set()
            await self._run(_find_required(session, request, required))
            if self.outbox.closed:
                return
            async with engine.upstream.holding(session.feed, required) as feed:
                await self._run(session.complete(request, lambda: feed.epoch))
        if session.heartbeat_ms != heartbeat_ms:
            self._schedule_heartbeat()
        if session.follows_replay != follows_replay:
            if session.follows_replay and not self.outbox.closed:
                await engine.feed_replays.follow(session)
            else:
                engine.feed_replays.unfollow(session)

    async def _run(self, steps: Steps) -> None:
        """Run work of the session in time slices, so that other clients are served meanwhile."""
        if not self.outbox.closed:
            await self._engine.slices.run(self._session, steps)
            self._send_backfill()

    def _start(self, steps: Steps) -> None:
        """Run work of the session in time slices, without waiting for it."""

        def guarded() -> Steps:
            try:
                yield from steps
                self._send_backfill()
            except Exception:
                self._fail()

        if not self.outbox.closed:
            self._engine.slices.start(self._session, guarded())

    def _send_backfill(self) -> None:
        if self._session.backfill is not None and not self.outbox.closed:
            self._engine.backfill.serve(self._session.backfill)

    async def _publish(self, action: Publish) -> None:
        session, publishing = self._session, self._engine.publishing
        try:
            grant = publishing.check_right(session.grant)
            ticks = parse_published(action.message, Time.now())
            count = await publishing.publish(grant, self._client.address, session.feed, ticks)
        except InvalidTick as error:
            session.refuse(action, Fault.INVALID_SYNTAX, str(error))
        except PublishDenied as error:
            session.refuse(action, Fault.INSUFFICIENT_SUBSCRIPTION, str(error))
        except (TooFast, Overloaded) as error:
            session.refuse(action, Fault.RATE_LIMITED, str(error))
        except BrokerUnavailable as error:
            session.refuse(action, Fault.BROKER_UNAVAILABLE, str(error))
        else:
            session.confirm_published(count, action.id)

    # -- replays

    def _replaying_client(self) -> ReplayClient:
        if self._replay_client is None:
            send = partial(self._engine.hub.send_replay, self.outbox)
            self._replay_client = ReplayClient(self.outbox, self._session.encoding, send)
        return self._replay_client

    def _steer_tape(self, action: SteerReplay) -> None:
        try:
            self._engine.private_replays.steer(self._replaying_client(), action)
        except InvalidAction as error:
            self._session.refuse(action, error.fault, error.detail)

    async def _steer_feed(self, action: SteerReplay) -> None:
        """Steer the replay that plays into the feed, which affects all clients of the feed."""
        try:
            if not self._engine.settings.steers_replays:
                raise ReplayFailed("this server does not let clients steer it")
            state = await self._engine.feed_replays.steer(self._session.feed, action)
        except ReplayFailed as error:
            self._session.refuse(action, Fault.INVALID_ACTION, str(error))
        else:
            self._session.confirm_steering(state)

    def _stop_uncovered_replays(self) -> None:
        if self._replay_client is not None:
            self._engine.private_replays.stop_uncovered(self._replay_client, self._session.narrow)

    # -- grants

    async def _authenticate(self, auth: Auth) -> None:
        admission = self._engine.admission
        try:
            grant = await admission.authenticate(self._client, auth.credentials)
        except AuthFailed as error:
            admission.log_refusal("credentials", self._client, str(error))
            self._close(Fault.AUTH_FAILED, str(error), auth.id)
        except TryAgain as error:
            admission.log_refusal("busy", self._client, str(error))
            self._session.refuse(auth, Fault.RATE_LIMITED, str(error))
        except TooManyConnections:
            admission.log_refusal("key", self._client, "too many connections")
            self._close(Fault.CONNECTION_LIMIT, "of this key", auth.id)
        else:
            if not self.outbox.closed:
                self._start(self._session.authenticate(grant, auth.id))
                self._client.grant = self._session.grant
                self._stop_uncovered_replays()
                self._set_deadline()

    def _set_deadline(self) -> None:
        """Start the timer that ends the connection when the client's time is up."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        grant = self._session.grant
        loop = asyncio.get_running_loop()
        if grant is None:
            wait_s = self._engine.settings.auth_timeout_s
            self._deadline = loop.call_later(wait_s, self._close, Fault.AUTH_TIMEOUT)
        elif grant.expires_s is not None:
            wait_s = min(max(0.0, grant.expires_s - time.time()), _GRANT_CHECK_S)
            self._deadline = loop.call_later(wait_s, self._check_grant)

    def _check_grant(self) -> None:
        """End the connection if its grant is no longer valid, or apply the changes of the grant."""
        try:
            grant = self._session.grant
            if grant is None:
                return
            renewed = self._engine.admission.authenticator.renewed(grant)
            if renewed is None:
                self._close(Fault.AUTH_FAILED, "expired or revoked")
                return
            if renewed != grant:
                self._start(self._session.change_grant(renewed))
                self._client.grant = renewed
                self._stop_uncovered_replays()
            self._set_deadline()
        except Exception:
            # Don't propagate: the caller goes on to check other clients, whose keys may be revoked.
            self._fail()

    # -- heartbeats and the sink's events

    def _schedule_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
        if self._session.heartbeat_ms and not self.outbox.closed:
            loop = asyncio.get_running_loop()
            wait_s = self._session.heartbeat_ms / 1000
            self._heartbeat = loop.call_later(wait_s, self._send_heartbeat)

    def _send_heartbeat(self) -> None:
        self._session.send_heartbeat(self._engine.upstream.subscriber.received_s)
        self._schedule_heartbeat()

    def _on_drain(self) -> None:
        self._session.drain()
        self._send_backfill()
        if self._replay_client is not None:
            self._engine.private_replays.drain(self._replay_client)

    def _shutdown_frame(self) -> bytes:
        # Clients that all came back at once would overload the next server.
        return self._session.shutdown_frame(random.randint(*_RETRY_SPREAD_MS))

    # -- endings

    def _fail(self) -> None:
        logger.exception("a bug in a connection")
        self._close(Fault.INTERNAL_ERROR)

    def _close_failed(self) -> None:
        self._close(Fault.INTERNAL_ERROR)

    def _close_slow_client(self) -> None:
        logger.info("closing a slow client")
        self._close(Fault.SLOW_CLIENT)

    def _close_flood(self) -> None:
        self._close(Fault.RATE_LIMITED, "too many frames")

    def _close(self, fault: Fault, detail: str = "", id_: Id = None) -> None:
        error = message_frame(protocol.error(fault, detail, id_), self._session.encoding)
        self._sink.finish(error, CLOSE_CODES[fault], fault.text)

    def _log_fields(self) -> dict[str, object]:
        grant = self._client.grant
        return {
            "client": self._client.number,
            "address": self._client.address,
            "feed": self._session.feed,
            "encoding": self._session.encoding.value,
            "subject": f"{grant.proof.value}:{grant.subject}" if grant and grant.subject else None,
        }


def _find_required(session: Session, request: Request, found: set[Subscription]) -> Steps:
    """Find what a request needs open. This takes milliseconds for a key with 1,000 patterns."""
    found.update(session.required_streams(request))
    yield
