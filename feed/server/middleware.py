"""ASGI middleware: security headers for every response, and the request rate of each address."""

from __future__ import annotations

from time import monotonic
from typing import Final

from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feed.transport.address_limits import AddressLimiter, AddressLimits
from feed.transport.http_messages import PUBLISH_PATH

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
_DENIALS: Final = (401, 403)
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


class RootPath:
    """ASGI middleware that serves an application below a path prefix.

    Paths without the prefix work too, so that probes and proxies that remove it need no exception.
    The prefix alone is redirected to the page, whose links are relative.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path == self._root_path and scope["type"] == "http":
            await RedirectResponse(f"{self._root_path}/", 308)(scope, receive, send)
            return
        if path.startswith(f"{self._root_path}/"):
            scope = {**scope, "path": path.removeprefix(self._root_path)}
        await self._app(scope, receive, send)


class RequestLimits:
    """ASGI middleware that limits the request rate of each address, on every path.

    Requests to publish have limits of their own (see `feed.server.publishing`); of these, only the
    ones that are refused for their credentials count against the address.

    It reads `address_limits` and the counter `refused` from the lifespan state.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limiter = _limiter_of(scope) if scope["type"] == "http" else None
        if limiter is None:
            await self._app(scope, receive, send)
            return
        now_s = monotonic()
        is_publish = scope["path"] == PUBLISH_PATH
        retry_after_s = limiter.shut_out_s(now_s)
        if not (retry_after_s or is_publish):
            retry_after_s = limiter.spend_request(now_s)
        if retry_after_s:
            scope["state"]["refused"]["requests"] += 1
            # If the connection stayed open, the next request would follow immediately.
            headers = {"Retry-After": str(retry_after_s), "Connection": "close"}
            response = PlainTextResponse("too many requests from this address\n", 429, headers)
            await response(scope, receive, send)
            return

        async def send_and_count(message: Message) -> None:
            if message.get("status") in _DENIALS:
                limiter.note_refusal(monotonic())
            await send(message)

        await self._app(scope, receive, send_and_count if is_publish else send)


def _limiter_of(scope: Scope) -> AddressLimiter | None:
    """The limits of a request's address; None if it is exempt."""
    limits: AddressLimits = scope["state"]["address_limits"]
    return limits.of(scope["client"][0]) if scope["client"] else None
