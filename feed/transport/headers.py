"""Security headers for every HTTP response: what a page may load, and which sites may use it."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        # 'self' includes ws: and wss: on the same host (Content Security Policy Level 3).
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
"""ASGI messages that begin an HTTP response; the second one refuses a WebSocket handshake."""


class SecurityHeaders:
    """ASGI middleware that adds security headers to every response.

    It must be the outermost middleware, so that error responses get the headers too. A response
    without a `Cache-Control` header gets `no-store`, because its content changes. The 101 response
    to a WebSocket handshake passes unchanged.
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
