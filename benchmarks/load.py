"""The clients: many sockets in one process that costs as little as Python allows.

Most clients only count ticks, by a text that occurs once in each, and are read every 20 ms. Their
cost thus depends less on how a server splits its writes, and waking them is not charged to the
server, as if they were on other machines. A few clients, the *probes*, are read as soon as data
arrives. Their data is kept with its time of arrival and decoded after the measurement.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

MARKER = b'"T":"t","S":"'
"""A text that occurs once in each tick. It is long, because long texts are faster to find."""
_KEEP = len(MARKER) - 1
_ROOM = 1 << 18
_EVENTS = 128
_SETUP_TIMEOUT_S = 30.0
_ROUND_S = 0.02
_SLICES = 10

# Start with the marker, because the data of a probe may begin in the middle of a tick.
_TICK = re.compile(
    rb'"T":"t","S":"([^"]+)"[^}]*?'
    rb'"t":"\d{4}-\d\d-\d\dT(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?Z"[^}]*?"seq":(\d+)[^}]*\}'
)
_ERROR = re.compile(rb'\{"T":"error"[^}]*\}')
_MERGED = re.compile(rb'"cf":(\d+)')


class Step(NamedTuple):
    """One step of a client's setup: the data to wait for, and what to send then."""

    expect: bytes
    say: bytes = b""


class Way(NamedTuple):
    """How a client subscribes: its request, and the steps that follow.

    The setup is complete when the last step has received what it expects.

    Attributes:
        receive_buffer: the size of the socket's receive buffer; 0 means the kernel's default.
    """

    hello: bytes
    steps: Sequence[Step]
    receive_buffer: int = 0


class Refused(ConnectionError):
    """The server answered with an error; the message is its text."""


class Receipt(NamedTuple):
    """One tick as a probe received it."""

    symbol: str
    seq: int
    delay_ms: float
    at_ns: int
    merged: int


class Client:
    """One client connection."""

    __slots__ = ("ready", "received", "sock", "steps")

    def __init__(self, way: Way, address: tuple[str, int]) -> None:
        self.steps = deque(way.steps)
        self.received = b""
        self.ready = False
        self.sock = socket.socket()
        if way.receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, way.receive_buffer)
        self.sock.settimeout(_SETUP_TIMEOUT_S)
        self.sock.connect(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.sock.send(way.hello)

    def set_up(self, data: bytes) -> None:
        """Continue the setup with received data.

        Raises:
            Refused: the server answered with an error.
        """
        self.received += data
        if error := _ERROR.search(self.received):
            raise Refused(error[0].decode())
        if self.steps and self.steps[0].expect in self.received:
            step = self.steps.popleft()
            self.received = b""
            if step.say:
                self.sock.send(step.say)
        self.ready = not self.steps


class Swarm:
    """All clients of one server."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.cut_off = 0
        self._poll = select.epoll()
        self._by_fd: dict[int, Client] = {}
        self._receive: dict[int, Callable[[memoryview], int]] = {}
        self._tails: dict[int, bytearray] = {}
        self._counts: dict[int, int] = {}
        self._probes: dict[int, list[tuple[int, bytes]]] = {}
        self._watch = select.epoll()
        self._slices: list[list[int]] = [[] for _ in range(_SLICES)]
        self._next_slice = 0
        self._slice_at = 0.0
        self._buffer = bytearray(_KEEP + _ROOM)
        self._room = memoryview(self._buffer)[_KEEP:]

    # -- connecting and closing

    def connect(self, port: int, ways: Sequence[Way], at_once: int = 1) -> None:
        """Connect and set up clients in this order, `at_once` at a time.

        Raises:
            TimeoutError: the server doesn't answer in time.
            ConnectionError: the server closes a connection.
        """
        waiting: deque[Way] = deque(ways)
        unready: dict[int, Client] = {}
        deadline = time.monotonic() + _SETUP_TIMEOUT_S + len(ways) / 100
        while waiting or unready:
            while waiting and len(unready) < at_once:
                client = Client(waiting.popleft(), ("127.0.0.1", port))
                fd = client.sock.fileno()
                self.clients.append(client)
                self._by_fd[fd] = unready[fd] = client
                self._poll.register(fd, select.EPOLLIN)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(unready)} clients were not served in time")
            for fd, _ in self._poll.poll(1.0, _EVENTS):
                data = self._by_fd[fd].sock.recv(65_536)
                if not data:
                    raise ConnectionError("the server closed a connection before it was set up")
                if fd in unready:
                    unready[fd].set_up(data)
                    if unready[fd].ready:
                        del unready[fd]
        self._begin_counting(list(self._by_fd))

    def say(self, client: Client, say: bytes, expect: bytes) -> None:
        """Start one more step of a client. `finish_steps` waits for it."""
        self._poll.register(client.sock.fileno(), select.EPOLLIN)
        client.steps.append(Step(expect))
        client.ready = False
        client.sock.send(say)

    def finish_steps(self, timeout_s: float = _SETUP_TIMEOUT_S) -> None:
        """Wait until the steps that `say` started are done. No ticks may flow meanwhile.

        Raises:
            TimeoutError: the steps take too long.
        """
        fds = [fd for fd, client in self._by_fd.items() if not client.ready]
        unready = len(fds)
        deadline = time.monotonic() + timeout_s
        while unready:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{unready} clients were not served in time")
            for fd, _ in self._poll.poll(1.0, _EVENTS):
                client = self._by_fd[fd]
                was_ready = client.ready
                client.set_up(client.sock.recv(65_536))
                unready -= client.ready and not was_ready
        self._begin_counting(fds)

    def _begin_counting(self, fds: Sequence[int]) -> None:
        """Read clients in turn from now on. With epoll, each write would cost the server more."""
        for fd in fds:
            client = self._by_fd[fd]
            client.received = b""
            self._poll.unregister(fd)
            if fd not in self._counts:
                self._receive[fd] = client.sock.recv_into
                self._tails[fd] = bytearray(_KEEP)
                self._counts[fd] = 0
                self._slices[fd % _SLICES].append(fd)

    def choose_probes(self, count: int) -> None:
        """Turn some clients into probes: the first, the last, and some in between."""
        last = len(self.clients) - 1
        for number in range(count):
            client = self.clients[last * number // max(1, count - 1)]
            self.probe(client)

    def probe(self, client: Client) -> None:
        """Turn a client into a probe, which keeps its data with the times of arrival."""
        fd = client.sock.fileno()
        self.pause(client)
        self._probes[fd] = []
        self._watch.register(fd, select.EPOLLIN)

    def pause(self, client: Client) -> None:
        """Stop reading from a client."""
        self._drop(client.sock.fileno())

    def resume(self, client: Client) -> None:
        """Read from a client again."""
        fd = client.sock.fileno()
        if fd in self._probes:
            self._watch.register(fd, select.EPOLLIN)
        else:
            self._slices[fd % _SLICES].append(fd)

    def close(self) -> None:
        """Close all connections."""
        for client in self.clients:
            client.sock.close()
        self._poll.close()
        self._watch.close()

    # -- receiving

    def pump(self, until: float) -> None:
        """Receive until a monotonic time. This is the inner loop of every measurement."""
        watch, clock = self._watch.poll, time.monotonic
        while (now := clock()) < until:
            if now >= self._slice_at:
                self._slice_at = now + _ROUND_S / _SLICES
                self._read(self._slices[self._next_slice])
                self._next_slice = (self._next_slice + 1) % _SLICES
            left = max(0.0, min(self._slice_at, until) - clock())
            # epoll counts in milliseconds, and rounds up.
            for fd, _ in watch(left):
                self._read((fd,))

    def _read(self, fds: Sequence[int]) -> None:
        buffer, room = self._buffer, self._room
        receive, tails, counts, probes = self._receive, self._tails, self._counts, self._probes
        count = buffer.count
        cut = []
        for fd in fds:
            try:
                size = receive[fd](room)
            except BlockingIOError:
                continue
            except ConnectionError:
                size = 0
            if not size:
                cut.append(fd)
                continue
            if fd in probes:
                probes[fd].append((time.time_ns(), bytes(room[:size])))
            # Prepend the end of the previous data, because the marker may have been split.
            buffer[:_KEEP] = tails[fd]
            counts[fd] += count(MARKER, 0, _KEEP + size)
            tails[fd] = buffer[size : _KEEP + size]
        for fd in cut:
            self.cut_off += 1
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        if fd in self._slices[fd % _SLICES]:
            self._slices[fd % _SLICES].remove(fd)
        else:
            self._watch.unregister(fd)

    def total(self) -> int:
        """Return the number of ticks that all clients have received so far."""
        return sum(self._counts.values())

    def count(self, client: Client) -> int:
        """Return the number of ticks that one client has received so far."""
        return self._counts[client.sock.fileno()]

    def settle(self, total: int, timeout_s: float) -> bool:
        """Receive until all clients together have `total` ticks. Return False on a timeout."""
        deadline = time.monotonic() + timeout_s
        while self.total() < total:
            if time.monotonic() > deadline:
                return False
            self.pump(time.monotonic() + 0.02)
        return True

    # -- data of the probes

    def forget(self) -> None:
        """Discard the data of all probes."""
        for kept in self._probes.values():
            kept.clear()

    def kept(self, client: Client) -> list[tuple[int, bytes]]:
        """Return a probe's data with the times of arrival."""
        return self._probes[client.sock.fileno()]

    def take(self, client: Client) -> list[tuple[int, bytes]]:
        """Return and clear a probe's data, to be decoded after the measurement."""
        kept = self.kept(client)
        taken = kept.copy()
        kept.clear()
        return taken

    def receipts(self) -> list[list[Receipt]]:
        """Return the ticks that each probe received, in order."""
        return [decode(kept) for kept in self._probes.values()]


def decode(kept: Sequence[tuple[int, bytes]]) -> list[Receipt]:
    """Decode the ticks in a probe's data, each with the time at which its end arrived."""
    data = b"".join(chunk for _, chunk in kept)
    ends = iter(kept)
    end, at_ns = 0, 0
    receipts: list[Receipt] = []
    for match in _TICK.finditer(data):
        while end < match.end():
            at_ns, chunk = next(ends)
            end += len(chunk)
        symbol, hours, minutes, seconds, fraction, seq = match.groups()
        of_day = (int(hours) * 60 + int(minutes)) * 60 + int(seconds)
        sent_ns = of_day * 10**9 + int((fraction or b"0").ljust(9, b"0"))
        # Compare the time of day only, modulo a day, so that runs over midnight work.
        delay_ns = (at_ns - sent_ns + 43_200 * 10**9) % (86_400 * 10**9) - 43_200 * 10**9
        merged = _MERGED.search(match[0])
        receipts.append(
            Receipt(
                symbol.decode(), int(seq), delay_ns / 1e6, at_ns, int(merged[1]) if merged else 0
            )
        )
    return receipts
