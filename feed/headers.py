"""What every HTTP answer says to browsers: what it may load, and who may use it."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        # With ws: and wss: of the same host (Content Security Policy Level 3, matching of 'self').
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
_CACHE_CONTROL: Final = b"cache-control"
_ANSWERS: Final = frozenset(("http.response.start", "websocket.http.response.start"))
"""Begin an HTTP answer; the second one is a handshake's that is refused."""


class SecurityHeaders:
    """ASGI middleware that adds the headers; the outermost, so that no error is without.

    An answer that does not say how long it keeps is not to be kept: what it says changes. The 101
    of a WebSocket passes as it is.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] in _ANSWERS:
                headers = [*message.get("headers", ()), *_HEADERS]
                if all(name.lower() != _CACHE_CONTROL for name, _ in headers):
                    headers.append((_CACHE_CONTROL, b"no-store"))
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_headers)
