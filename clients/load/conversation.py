"""The messages of a client up to its subscription. No I/O.

Servers differ. One that speaks Alpaca's dialect accepts no subprotocol, and knows neither
`configure` nor the options of `subscribe`. Extensions that a server refuses are left out and
recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from clients.load.payload import Notice
from tickcast.wire.errors import ConnectionFailed, Fault

Action = dict[str, Any]
_TOO_MUCH: Final = frozenset((Fault.INVALID_SYNTAX.code, Fault.INVALID_ACTION.code))
"""Error codes with which a server refuses unknown options."""
_NOT_AUTHENTICATED: Final = Fault.NOT_AUTHENTICATED.code


class SubscribeDialogue:
    """One client's side of the conversation, from the greeting to the subscription.

    Attributes:
        greeted: whether the server has sent its greeting.
        ready: whether the subscription is confirmed.
        granted: extensions that the server accepted.
        refused: extensions that it did not.
    """

    def __init__(
        self,
        channels: Sequence[str],
        symbols: Sequence[str],
        auth: Mapping[str, str] | None = None,
        configure: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._channels = {channel: list(symbols) for channel in channels}
        self._auth = dict(auth or {})
        self._configure = dict(configure or {})
        self._options = dict(options or {})
        self._waits_for = "connected"
        self.extended = False
        self.greeted = False
        self.ready = False
        self.granted: set[str] = set()
        self.refused: set[str] = set()

    def receive(self, notice: Notice) -> Action | None:
        """Process a message other than a tick; return the next message to send, if any.

        Raises:
            ConnectionFailed: the server refused this client.
        """
        if self.ready:
            return None
        kind = notice.get("T")
        if kind == "error":
            return self._take_error(notice)
        if kind == "success" and notice.get("msg") == self._waits_for == "connected":
            self.greeted = True
            return self._authenticate()
        if kind == "success" and notice.get("msg") == self._waits_for == "authenticated":
            return self._configure_or_go_on()
        if kind == "configured" and self._waits_for == "configured":
            self._note(self._configure, {name for name in self._configure if notice.get(name)})
            return self._subscribe()
        if kind == "subscription" and self._waits_for == "subscription":
            self._note(self._options, set(self._options))
            self.ready = True
        return None

    def _note(self, asked: Mapping[str, Any], granted: set[str]) -> None:
        self.granted |= granted
        self.refused |= set(asked) - granted

    def _authenticate(self) -> Action:
        if not self._auth:
            return self._configure_or_go_on()
        self._waits_for = "authenticated"
        return {"action": "auth", **self._auth}

    def _configure_or_go_on(self) -> Action:
        if not self.extended:
            self.refused |= set(self._configure)
            return self._subscribe()
        if not self._configure:
            return self._subscribe()
        self._waits_for = "configured"
        return {"action": "configure", **self._configure}

    def _subscribe(self) -> Action:
        self._waits_for = "subscription"
        return {"action": "subscribe", **self._channels, **self._options}

    def _take_error(self, notice: Notice) -> Action:
        # The server answers actions in turn, so an error answers the last one.
        code = notice.get("code")
        if self._waits_for == "configured" and code in _TOO_MUCH:
            self.refused |= set(self._configure)
            return self._subscribe()
        if self._waits_for == "subscription" and self._options and code in _TOO_MUCH:
            self.refused |= set(self._options)
            self._options = {}
            return self._subscribe()
        if code == _NOT_AUTHENTICATED:
            raise ConnectionFailed("401 not authenticated; log in with --token-file FILE")
        raise ConnectionFailed(f"{code} {notice.get('msg')}")
