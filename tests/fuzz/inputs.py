"""Random inputs, for use without coverage guidance."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz.seeds import FRAGMENTS
from tests.fuzz.targets import Target

Edit = tuple[int, int, bytes]
"""Position, number of bytes to remove, and the bytes to insert."""


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Yield seeds with pieces cut out and others inserted, and noise."""
    pieces = st.binary(max_size=8) | st.sampled_from((*FRAGMENTS, *target.seeds))
    edits = st.tuples(st.integers(0, 300), st.integers(0, 30), pieces)
    edited = st.builds(_edit, st.sampled_from(target.seeds), st.lists(edits, max_size=4))
    return edited | st.binary()


def _edit(data: bytes, edits: list[Edit]) -> bytes:
    for place, gone, piece in edits:
        start = place % (len(data) + 1)
        data = data[:start] + piece + data[start + gone :]
    return data
