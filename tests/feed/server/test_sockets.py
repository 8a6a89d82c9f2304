"""Addresses that a server listens on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from feed.server.sockets import CannotListen, address_of, bind, bind_all

PAIRS = [
    (["::"], ["[::]", "0.0.0.0"]),
    (["localhost"], ["127.0.0.1", "[::1]"]),
    (["127.0.0.1", "::1"], ["127.0.0.1", "[::1]"]),
    (["[::1]"], ["[::1]"]),
    (["127.0.0.1", "127.0.0.1", "localhost"], ["127.0.0.1", "[::1]"]),
    (["127.0.0.1"], ["127.0.0.1"]),
]


@contextmanager
def bound(hosts: list[str], port: int = 0) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(each) for each in bind_all(hosts, port)]


@pytest.mark.parametrize(("hosts", "shown"), PAIRS)
def test_every_address_has_the_same_port(hosts: list[str], shown: list[str]) -> None:
    with bound(hosts) as listeners:
        port = listeners[0].getsockname()[1]
        assert [address_of(each) for each in listeners] == [
            f"http://{address}:{port}" for address in shown
        ]
        for address in shown:
            target = {"[::]": "::1", "0.0.0.0": "127.0.0.1"}.get(address, address.strip("[]"))
            socket.create_connection((target, port)).close()


def test_ipv4_clients_keep_their_addresses() -> None:
    with bound(["::"]) as listeners:
        port = listeners[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            peer, (address, *_) = listeners[1].accept()
            peer.close()
    assert address == "127.0.0.1"


def test_addresses_that_cannot_be_bound_are_reported() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=rf"can't listen on 127.0.0.1:{port}: ") as caught:
            bind_all(["::1", "127.0.0.1"], port)
        assert caught.value.is_in_use
        with bound(["::1"], port):  # The socket was closed again.
            pass
    with pytest.raises(CannotListen, match=r"can't listen on \[2001:db8::1\]:8000: "):
        bind_all(["2001:db8::1"], 8000)
    with pytest.raises(CannotListen, match=r"no\.such\.host\.invalid"):
        bind_all(["no.such.host.invalid"], 8000)
    with pytest.raises(CannotListen, match=":8000: no such name"):
        bind_all([f"{'a' * 64}.org"], 8000)
