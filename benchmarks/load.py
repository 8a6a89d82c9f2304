"""The clients: many sockets in one process that costs as little as Python allows.

Most clients only count ticks, by a text that stands once in each, and are read every 20 ms. So
their cost depends less on how a server parts its writes, and waking them is not charged to the
server, as it would not be if they were on other machines. A few, the *probes*, are read the moment
something comes; what they get is kept with the time, and decoded after the measurement.
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
"""Stands once in each tick. Long, because that makes it quick to find."""
_KEEP = len(MARKER) - 1
_ROOM = 1 << 18
_EVENTS = 128
_SETUP_TIMEOUT_S = 30.0
_ROUND_S = 0.02
_SLICES = 10

# The marker first, for a tick that a probe was in the middle of may come at the beginning.
_TICK = re.compile(
    rb'"T":"t","S":"([^"]+)"[^}]*?'
    rb'"t":"\d{4}-\d\d-\d\dT(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?Z"[^}]*?"seq":(\d+)[^}]*\}'
)
_ERROR = re.compile(rb'\{"T":"error"[^}]*\}')
_MERGED = re.compile(rb'"cf":(\d+)')


class Step(NamedTuple):
    """One step of a client's way in: what it waits for, and what it says then."""

    expect: bytes
    say: bytes = b""


class Way(NamedTuple):
    """How a client gets its ticks: its first words, and the steps that follow.

    It is served when the last step's expectation has come true.

    Attributes:
        receive_buffer: bytes that its kernel takes unread; 0 leaves that to the kernel.
    """

    hello: bytes
    steps: Sequence[Step]
    receive_buffer: int = 0


class Refused(ConnectionError):
    """The server answered with an error; the text is what it said."""


class Receipt(NamedTuple):
    """One tick as a probe saw it."""

    symbol: str
    seq: int
    delay_ms: float
    at_ns: int
    merged: int


class Client:
    """One socket."""

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
        """Go on with the steps.

        Raises:
            Refused: the server did not like one.
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

    # -- coming and going

    def connect(self, port: int, ways: Sequence[Way], at_once: int = 1) -> None:
        """Connect and set up clients in this order, so many at a time.

        Raises:
            TimeoutError: the server does not answer them.
            ConnectionError: it throws them out.
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
        """Let a client go on with one more step; `finish_steps` waits for it."""
        self._poll.register(client.sock.fileno(), select.EPOLLIN)
        client.steps.append(Step(expect))
        client.ready = False
        client.sock.send(say)

    def finish_steps(self, timeout_s: float = _SETUP_TIMEOUT_S) -> None:
        """Wait until the steps that `say` began are done. No ticks must flow meanwhile.

        Raises:
            TimeoutError: they are not in time.
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
        """From now on clients are read in turn; asking epoll would make each write dearer."""
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
        """Let some clients keep what they get: the first, the last, and some between."""
        last = len(self.clients) - 1
        for number in range(count):
            client = self.clients[last * number // max(1, count - 1)]
            self.probe(client)

    def probe(self, client: Client) -> None:
        """Let a client keep what it gets, and when."""
        fd = client.sock.fileno()
        self.pause(client)
        self._probes[fd] = []
        self._watch.register(fd, select.EPOLLIN)

    def pause(self, client: Client) -> None:
        """Stop reading."""
        self._drop(client.sock.fileno())

    def resume(self, client: Client) -> None:
        """Read again."""
        fd = client.sock.fileno()
        if fd in self._probes:
            self._watch.register(fd, select.EPOLLIN)
        else:
            self._slices[fd % _SLICES].append(fd)

    def close(self) -> None:
        """Cut all connections."""
        for client in self.clients:
            client.sock.close()
        self._poll.close()
        self._watch.close()

    # -- receiving

    def pump(self, until: float) -> None:
        """Receive until a time of the monotonic clock. The inner loop of every measurement."""
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
            # The end of what came before goes in front: the marker may have been cut in two.
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
        """Ticks received by all clients so far."""
        return sum(self._counts.values())

    def count(self, client: Client) -> int:
        """Ticks received by one client so far."""
        return self._counts[client.sock.fileno()]

    def settle(self, total: int, timeout_s: float) -> bool:
        """Receive until so many ticks have come in all; False if they do not."""
        deadline = time.monotonic() + timeout_s
        while self.total() < total:
            if time.monotonic() > deadline:
                return False
            self.pump(time.monotonic() + 0.02)
        return True

    # -- what the probes saw

    def forget(self) -> None:
        """Let the probes begin anew."""
        for kept in self._probes.values():
            kept.clear()

    def kept(self, client: Client) -> list[tuple[int, bytes]]:
        """What a probe received, and when."""
        return self._probes[client.sock.fileno()]

    def take(self, client: Client) -> list[tuple[int, bytes]]:
        """What a probe has kept; it begins anew. To be decoded when there is time."""
        kept = self.kept(client)
        taken = kept.copy()
        kept.clear()
        return taken

    def receipts(self) -> list[list[Receipt]]:
        """What each probe got, in order."""
        return [decode(kept) for kept in self._probes.values()]


def decode(kept: Sequence[tuple[int, bytes]]) -> list[Receipt]:
    """The ticks in what a probe received, each with the time at which its end had come."""
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
        # Only the time of day is compared; a run over midnight still gives a small difference.
        delay_ns = (at_ns - sent_ns + 43_200 * 10**9) % (86_400 * 10**9) - 43_200 * 10**9
        merged = _MERGED.search(match[0])
        receipts.append(
            Receipt(
                symbol.decode(), int(seq), delay_ns / 1e6, at_ns, int(merged[1]) if merged else 0
            )
        )
    return receipts
