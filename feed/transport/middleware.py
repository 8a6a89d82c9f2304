"""ASGI middleware: security headers for every response, and the request rate of each address."""

from __future__ import annotations

from time import monotonic
from typing import Final

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feed.transport.address_limits import AddressLimits

# What a page may load, and which sites may use it.
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
# ASGI messages that begin an HTTP response; the second one refuses a WebSocket handshake.
_RESPONSE_STARTS: Final = frozenset(("http.response.start", "websocket.http.response.start"))


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
            if message["type"] in _RESPONSE_STARTS:
                headers = [*message.get("headers", ()), *_HEADERS]
                if all(name.lower() != _CACHE_CONTROL for name, _ in headers):
                    headers.append((_CACHE_CONTROL, b"no-store"))
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_headers)


class RequestLimits:
    """ASGI middleware that limits the request rate of each address, on every path.

    It reads `address_limits` and the counter `refused` from the lifespan state.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        retry_after_s = _retry_after_s(scope) if scope["type"] == "http" else 0
        if not retry_after_s:
            await self._app(scope, receive, send)
            return
        scope["state"]["refused"]["requests"] += 1
        # If the connection stayed open, the next request would follow immediately.
        headers = {"Retry-After": str(retry_after_s), "Connection": "close"}
        response = PlainTextResponse("too many requests from this address\n", 429, headers)
        await response(scope, receive, send)


def _retry_after_s(scope: Scope) -> int:
    """How long the address must wait, in seconds; 0 if it may send its request."""
    limits: AddressLimits = scope["state"]["address_limits"]
    limiter = limits.of(scope["client"][0]) if scope["client"] else None
    if limiter is None:
        return 0
    now_s = monotonic()
    return limiter.shut_out_s(now_s) or limiter.spend_request(now_s)
