"""Open the sockets of many connections to one server."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from clients.load.client import LoadClient
from clients.load.plan import Plan
from clients.load.wire import StreamAddress
from tickcast.client.connection import verifying_context


class Dialer:
    """Resolves the server's name once, and connects clients."""

    def __init__(self, plan: Plan, address: StreamAddress) -> None:
        self._address = address
        self._slow_rcvbuf_bytes = plan.slow_rcvbuf_bytes
        self._tls = verifying_context(plan.ca_file) if address.secure else None
        self._peers: list[Any] = []

    async def open_connection(self, client: LoadClient) -> None:
        """Connect a client.

        Raises:
            OSError: the host has no address, or none of them answers.
        """
        address = self._address
        if not self._peers:
            loop = asyncio.get_running_loop()
            self._peers = await loop.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM
            )
        failure = OSError("no such host")
        for peer in self._peers:
            try:
                await self._dial_peer(client, peer[0], peer[4])
            except OSError as error:
                failure = error
            else:
                # Use the first address that answers for all other connections.
                self._peers = [peer]
                return
        raise failure

    async def _dial_peer(self, client: LoadClient, family: int, peer: Any) -> None:
        loop = asyncio.get_running_loop()
        plain = socket.socket(family, socket.SOCK_STREAM)
        try:
            plain.setblocking(False)
            if client.seat.slow:
                # Must be set before connecting, which negotiates the window.
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._slow_rcvbuf_bytes)
            await loop.sock_connect(plain, peer)
            await loop.create_connection(
                lambda: client,
                sock=plain,
                ssl=self._tls,
                server_hostname=self._address.host if self._tls else None,
            )
        except BaseException:
            plain.close()
            raise
