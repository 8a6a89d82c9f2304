"""One WebSocket connection: reads messages and connects session, outbox and socket."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

from starlette.websockets import WebSocket

from feed.access.admission import AdmittedClient
from feed.fanout.encoded_ticks import message_frame
from feed.fanout.outbox import Outbox
from feed.replay.scheduler import ReplayClient
from feed.server.engine import Engine
from feed.server.session import Request, Session
from feed.transport.asgi_sink import AsgiSink
from feed.transport.handshake import WebSocketProtocol
from feed.transport.loop_time import Steps
from tickcast.wire import messages as protocol
from tickcast.wire.actions import Auth, Configure, Id, PlayTape, SteerReplay
from tickcast.wire.errors import (
    CLOSE_CODES,
    AuthFailed,
    BrokerUnavailable,
    BrokerUnsuitable,
    CloseCode,
    Fault,
    InvalidAction,
    ReplayFailed,
    SessionEnded,
    TooManyConnections,
    TryAgain,
    describe_close_code,
)
from tickcast.wire.subscriptions import Subscription

_RETRY_SPREAD_MS: Final = (100, 2000)
_LOOK_S: Final = 3600.0
"""The longest time to wait for a grant to expire before checking it again."""

logger = logging.getLogger("tickcast.connection")


def _find_wanted(session: Session, request: Request, found: set[Subscription]) -> Steps:
    """Find what a request needs open. This takes milliseconds for a key with 1,000 patterns."""
    found.update(session.required_streams(request))
    yield


class Connection:
    """Runs one client's session on its socket."""

    __slots__ = ("_beating", "_began_s", "_deadline", "_engine", "_session", "_sink", "_viewer",
                 "_visitor", "outbox")  # fmt: skip

    def __init__(
        self, sink: WebSocketProtocol | AsgiSink, engine: Engine, visitor: AdmittedClient
    ) -> None:
        self._sink = sink
        self._engine = engine
        self._visitor = visitor
        self._beating: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._viewer: ReplayClient | None = None
        self._began_s = time.monotonic()
        self.outbox = Outbox(
            sink, engine.settings.outbox_max_bytes, self._give_up_slow_client, self._end_failed
        )

    def begin(self, session: Session) -> None:
        """Greet the client. Then pass its messages to `receive`, and call `end` when it is gone."""
        self._session = session
        self._sink.on_drain = self._drain
        self._sink.on_shutdown = self._last_words
        self._sink.on_flood = self._stop_flood
        self._visitor.on_change = self._look_at_grant
        self._engine.hub.counters.connections += 1
        self._engine.sessions.add(session)
        session.greet()
        self._set_deadline()
        logger.info("opened", extra=self._about())

    def receive(self, message: str | bytes) -> Coroutine[Any, Any, None] | None:
        """Answer a message. If it returns a coroutine, await that before the next message."""
        try:
            request = self._session.handle_message(message)
        except SessionEnded as end:
            self._finish(end.fault, end.detail, end.id)
            return None
        except Exception:
            self._fail()
            return None
        if self._session.must_resubscribe:
            self._carry_out_later(self._session.resubscribe())
        if isinstance(request, SteerReplay) and request.id is not None:
            self._steer(request)
            return None
        return self._work_on(request) if request is not None else None

    def _work_on(
        self, request: Request | Auth | PlayTape | SteerReplay
    ) -> Coroutine[Any, Any, None]:
        match request:
            case Auth():
                return self._identify(request)
            case PlayTape():
                return self._play(request)
            case SteerReplay():
                return self._steer_feed(request)
        return self._answer(request)

    def end(self, code: int) -> None:
        """Release everything that belongs to the connection, after the client is gone."""
        self._engine.slices.discard(self._session)
        self._engine.sessions.discard(self._session)
        self._engine.feed_replays.unfollow(self._session)
        self._engine.hub.counters.closed[code] += 1
        totals = self._engine.hub.totals(self.outbox)
        self._session.release()
        if self._session.backfill is not None:
            self._engine.backfill.remove(self._session.backfill)
        if self._viewer is not None:
            self._engine.private_replays.forget(self._viewer)
        for timer in (self._beating, self._deadline):
            if timer is not None:
                timer.cancel()
        self._beating = self._deadline = self._viewer = None
        self._engine.admission.release(self._visitor)
        logger.info(
            "closed",
            extra=self._about() | {
                "code": code,
                "reason": describe_close_code(code),
                "ticks": totals.sent,
                "bytes": totals.bytes,
                "duration_s": round(time.monotonic() - self._began_s, 3),
            },
        )  # fmt: skip

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

    async def _answer(self, request: Request) -> None:
        session = self._session
        heartbeat_ms, follows_replay = session.heartbeat_ms, session.follows_replay
        try:
            if isinstance(request, Configure):
                await self._carry_out(session.complete(request, str))
            else:
                wanted: set[Subscription] = set()
                await self._carry_out(_find_wanted(session, request, wanted))
                if self.outbox.closed:
                    return
                async with self._engine.upstream.holding(session.feed, wanted) as feed:
                    await self._carry_out(session.complete(request, lambda: feed.epoch))
        except (BrokerUnavailable, BrokerUnsuitable) as error:
            logger.warning("could not serve a request: %s", error)
            session.refuse(request, Fault.BROKER_UNAVAILABLE, "try again later")
        except Exception:
            self._fail()
        if session.heartbeat_ms != heartbeat_ms:
            self._beat_later()
        if session.follows_replay != follows_replay:
            await self._follow_replay()

    async def _carry_out(self, steps: Steps) -> None:
        """Run work of the session in time slices, so that other clients are served meanwhile."""
        if not self.outbox.closed:
            await self._engine.slices.run(self._session, steps)
            self._serve_past()

    def _carry_out_later(self, steps: Steps) -> None:
        """Run work of the session in time slices, without waiting for it."""
        if not self.outbox.closed:
            self._engine.slices.start(self._session, self._guarded(steps))

    def _guarded(self, steps: Steps) -> Steps:
        try:
            yield from steps
            self._serve_past()
        except Exception:
            self._fail()

    def _serve_past(self) -> None:
        if self._session.backfill is not None and not self.outbox.closed:
            self._engine.backfill.serve(self._session.backfill)

    async def _follow_replay(self) -> None:
        try:
            if self._session.follows_replay and not self.outbox.closed:
                await self._engine.feed_replays.follow(self._session)
            else:
                self._engine.feed_replays.unfollow(self._session)
        except Exception:
            self._fail()

    async def _play(self, play: PlayTape) -> None:
        session = self._session
        try:
            await self._engine.private_replays.play(self._view(), play, session.narrow)
        except InvalidAction as error:
            session.refuse(play, error.fault, error.detail)
        except Exception:
            self._fail()

    def _steer(self, steer: SteerReplay) -> None:
        try:
            self._engine.private_replays.steer(self._view(), steer)
        except InvalidAction as error:
            self._session.refuse(steer, error.fault, error.detail)

    def _view(self) -> ReplayClient:
        """The client's viewer for private replays, created on first use: few clients need one."""
        if self._viewer is None:
            send = partial(self._engine.hub.send_replay, self.outbox)
            self._viewer = ReplayClient(self.outbox, self._session.encoding, send)
        return self._viewer

    async def _steer_feed(self, steer: SteerReplay) -> None:
        """Steer the replay that plays into the feed, which affects all clients of the feed."""
        session, engine = self._session, self._engine
        try:
            if not engine.settings.steers_replays:
                raise ReplayFailed("this server lets no client steer it")
            state = await engine.feed_replays.steer(session.feed, steer)
        except ReplayFailed as error:
            session.refuse(steer, Fault.INVALID_ACTION, str(error))
        except (BrokerUnavailable, BrokerUnsuitable) as error:
            logger.warning("could not steer a replay: %s", error)
            session.refuse(steer, Fault.BROKER_UNAVAILABLE, "try again later")
        except Exception:
            self._fail()
        else:
            session.confirm_steering(state)

    async def _identify(self, auth: Auth) -> None:
        try:
            grant = await self._engine.admission.authenticate(self._visitor, auth.credentials)
        except AuthFailed as error:
            self._engine.admission.log_refusal("credentials", self._visitor, str(error))
            self._finish(Fault.AUTH_FAILED, str(error), auth.id)
        except TryAgain as error:
            self._engine.admission.log_refusal("busy", self._visitor, str(error))
            self._session.refuse(auth, Fault.RATE_LIMITED, str(error))
        except TooManyConnections:
            self._engine.admission.log_refusal("key", self._visitor, "too many connections")
            self._finish(Fault.CONNECTION_LIMIT, "of this key", auth.id)
        except Exception:
            self._fail()
        else:
            if not self.outbox.closed:
                self._carry_out_later(self._session.authenticate(grant, auth.id))
                self._visitor.grant = self._session.grant
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
            self._deadline = loop.call_later(wait_s, self._finish, Fault.AUTH_TIMEOUT)
        elif grant.expires_s is not None:
            wait_s = min(max(0.0, grant.expires_s - time.time()), _LOOK_S)
            self._deadline = loop.call_later(wait_s, self._look_at_grant)

    def _look_at_grant(self) -> None:
        """End the connection if its grant is no longer valid, or apply the changes of the grant."""
        try:
            self._follow_grant()
        except Exception:
            # Don't propagate: the caller goes on to check other clients, whose keys may be revoked.
            self._fail()

    def _follow_grant(self) -> None:
        grant = self._session.grant
        if grant is None:
            return
        renewed = self._engine.admission.authenticator.renewed(grant)
        if renewed is None:
            self._finish(Fault.AUTH_FAILED, "expired or revoked")
            return
        if renewed != grant:
            self._carry_out_later(self._session.change_grant(renewed))
            self._visitor.grant = renewed
            self._stop_uncovered_replays()
        self._set_deadline()

    def _stop_uncovered_replays(self) -> None:
        if self._viewer is not None:
            self._engine.private_replays.stop_uncovered(self._viewer, self._session.narrow)

    def _drain(self) -> None:
        self._session.drain()
        self._serve_past()
        if self._viewer is not None:
            self._engine.private_replays.drain(self._viewer)

    def _beat(self) -> None:
        self._session.send_heartbeat(self._engine.upstream.subscriber.received_s)
        self._beat_later()

    def _beat_later(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        if self._session.heartbeat_ms and not self.outbox.closed:
            loop = asyncio.get_running_loop()
            self._beating = loop.call_later(self._session.heartbeat_ms / 1000, self._beat)

    def _fail(self) -> None:
        logger.exception("a bug in a connection")
        self._finish(Fault.INTERNAL_ERROR)

    def _end_failed(self) -> None:
        self._finish(Fault.INTERNAL_ERROR)

    def _give_up_slow_client(self) -> None:
        logger.info("closing a slow client")
        self._finish(Fault.SLOW_CLIENT)

    def _stop_flood(self) -> None:
        self._finish(Fault.RATE_LIMITED, "too many frames")

    def _finish(self, fault: Fault, detail: str = "", id_: Id = None) -> None:
        words = message_frame(protocol.error(fault, detail, id_), self._session.encoding)
        self._sink.finish(words, CLOSE_CODES[fault], fault.text)

    def _about(self) -> dict[str, object]:
        """Return the fields for log records about the connection."""
        grant = self._visitor.grant
        return {
            "client": self._visitor.number,
            "address": self._visitor.address,
            "feed": self._session.feed,
            "encoding": self._session.encoding.value,
            "subject": f"{grant.proof.value}:{grant.subject}" if grant and grant.subject else None,
        }

    def _last_words(self) -> bytes:
        return self._session.shutdown_frame(random.randint(*_RETRY_SPREAD_MS))
