"""HTTP and WebSocket connections: uvicorn's protocol classes with our limits, and TLS.

Bytes come in from a socket, and requests and messages go out to the ASGI app. In the other
direction, a sink writes encoded frames to the transport. Start with `websocket`.
"""
