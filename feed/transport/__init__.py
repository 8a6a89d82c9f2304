"""HTTP and WebSocket connections: protocol classes for uvicorn with limits for clients, and TLS.

Bytes come in from a socket; requests go out to the ASGI application, and messages to callbacks. In
the other direction, encoded frames go to the transport. Start with `http` and `handshake`, which
begin a connection, and with `websocket`, which every client ends up on.
"""
