"""Brings a client from a point in a stream's past up to its present, without a gap or a duplicate.

A `CatchUp` is one client's way through one stream. It ends when the client has got just what the
hub has handed on of the stream: from then on the client is one of its subscribers. No ticks are
kept for it meanwhile. What it lacks is read from history, in pages shared with others; and what
history did not reach to yet, when it was read, is in the stream's tail.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from feed.batch import NEW_EPOCH, Gap, GapReason, History, Place
from feed.blocks import BLOCK_TICKS, Block, Blocks, Letter, block_start, to_letter
from feed.fields import Id
from feed.pieces import Chunk, Form
from feed.positions import Position
from feed.streams import Stream
from feed.ticks import StreamKey
from feed.times import Time


class Request(NamedTuple):
    """What must be read from the store: history after a number, or where a point in time lies."""

    key: StreamKey
    after: int = 0
    time: Time | None = None


class Origin:
    """The `subscribe` that asked for the past of some streams.

    Attributes:
        id: its `id`, to be echoed in an error.
        failed: whether the error "history can't be read" was sent: once is enough.
    """

    __slots__ = ("failed", "id")

    def __init__(self, id_: Id = None) -> None:
        self.id = id_
        self.failed = False


class Verdict(Enum):
    """How things stand where there is nothing to send or read."""

    JOIN = "up to date"
    WAIT = "the store has gone further than the hub, which will follow"
    RESTART = "its numbering is not this one: begin at the present"


class Stretch(NamedTuple):
    """Ticks to send next, at most one frame of them."""

    source: Block | Chunk
    first_seq: int
    last_seq: int

    def letter(self, form: Form, written_us: int) -> Letter:
        """The ticks as frames."""
        if isinstance(self.source, Block):
            return self.source.letter(form, self.first_seq, self.last_seq, written_us)
        key, ticks, published_us = self.source
        part = slice(0, self.last_seq - self.first_seq + 1)
        return to_letter(Chunk(key, ticks[part], published_us[part]), form, written_us)


class CatchUp:
    """One client's way through one stream.

    Attributes:
        epoch, seq: the last tick that the client has, or knows to be lost.
        origin: the request that it serves.
    """

    __slots__ = ("_head", "_is_sure", "_shares", "_start", "epoch", "origin", "seq")

    def __init__(
        self,
        position: Position | None = None,
        start: Time | None = None,
        origin: Origin | None = None,
    ) -> None:
        """Begin after a position, or at a point in time."""
        self.origin = origin or Origin()
        self.epoch, self.seq = position if position is not None and position.seq else ("", 0)
        self._start = start
        self._is_sure = False
        self._head: Position | None = None
        self._shares = True

    def next(self, stream: Stream, blocks: Blocks) -> Stretch | Gap | Request | Verdict:
        """What is to be done next; ticks and gaps count as sent."""
        if self._start is not None:
            return Request(stream.key, time=self._start)
        if self.epoch != stream.epoch and (step := self._cross_epochs(stream)) is not None:
            return step
        if self.seq == stream.seq:
            return Verdict.JOIN
        if self.seq > stream.seq:
            return self._look_ahead(stream)
        self._is_sure = True
        stretch = self._from_tail(stream) or self._from_blocks(stream, blocks)
        if stretch is None:
            return Request(stream.key, block_start(self.seq) if self._shares else self.seq)
        self.seq = stretch.last_seq
        return stretch

    def _cross_epochs(self, stream: Stream) -> Gap | Request | Verdict | None:
        """Of two epochs, the store knows which is the present one."""
        if not self.seq and self.epoch < stream.epoch:
            self.epoch = stream.epoch
            return None
        if self._is_sure and self.epoch < stream.epoch:
            self.epoch, self.seq = stream.epoch, 0
            return NEW_EPOCH
        return self._look_ahead(stream)

    def _look_ahead(self, stream: Stream) -> Request | Verdict:
        """The client has what the hub has not: a server further ahead has sent it, or none has."""
        head, self._head = self._head, None
        if head is None:
            return Request(stream.key, self.seq)
        if head.epoch == self.epoch and head.seq >= self.seq:
            return Verdict.WAIT
        self.epoch, self.seq = stream.epoch, stream.seq
        return Verdict.RESTART

    def _from_tail(self, stream: Stream) -> Stretch | None:
        chunk = stream.tail.after(stream.key, self.seq) if stream.tail is not None else None
        if chunk is None:
            return None
        return Stretch(chunk, self.seq + 1, min(stream.seq, self.seq + BLOCK_TICKS))

    def _from_blocks(self, stream: Stream, blocks: Blocks) -> Stretch | None:
        block = blocks.find(stream.key, stream.epoch, self.seq + 1)
        if block is None:
            return None
        return Stretch(block, self.seq + 1, min(stream.seq, block.last_seq))

    # -- what was read

    def take_place(self, place: Place, stream: Stream) -> Gap | None:
        """Begin where the point in time lies; returns what is not retained any more, if anything.

        How many ticks that are is not known: the gap has only an end.
        """
        self._start = None
        self._is_sure = True
        self._head = Position(place.epoch, place.seq)
        self.epoch, self.seq = place.epoch or stream.epoch, place.before
        return Gap(None, place.before, GapReason.RETENTION) if place.trimmed else None

    def take_history(self, history: History, stream: Stream) -> Gap | None:
        """Note what was read on request; returns what turned out not to be retained, if anything.

        The ticks themselves are found in the blocks.
        """
        self._head = Position(history.epoch, history.seq)
        if self.epoch != stream.epoch or self.seq >= stream.seq:
            return None
        self._is_sure = True
        # A page from the start of the block, as others ask for too, might end before it is of use.
        self._shares = history.complete or history.through > self.seq
        next_seq = stream.seq + 1
        if history.epoch == self.epoch:
            next_seq = min(next_seq, self._next_in(history))
        if stream.tail is not None and stream.tail.first_seq is not None:
            next_seq = min(next_seq, stream.tail.first_seq)
        if next_seq <= self.seq + 1:
            return None
        gap = Gap(self.seq + 1, next_seq - 1, GapReason.RETENTION)
        self.seq = next_seq - 1
        return gap

    def give_up(self, stream: Stream) -> Gap | Verdict:
        """History can't be read: go on with the present. Returns what the client misses thereby."""
        knows_start = self._start is None
        same_epoch = self.epoch == stream.epoch or not self.seq
        before, seq = self.seq, stream.seq
        self._start = None
        self.epoch, self.seq = stream.epoch, seq
        if not knows_start:
            return Gap(None, seq, GapReason.BROKER)
        if not same_epoch or before > seq:
            return Verdict.RESTART
        return Gap(before + 1, seq, GapReason.BROKER) if before < seq else Verdict.JOIN

    def _next_in(self, history: History) -> int:
        """The first number from the one on that comes next that history has, or may have."""
        for batch in history.batches:
            if batch.first_seq + len(batch.ticks) > self.seq + 1:
                return max(batch.first_seq, self.seq + 1)
        return history.through + 1
