"""A log-linear histogram of durations, like HdrHistogram: small, mergeable, exact to 0.8 %."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

_LINEAR_BITS: Final = 8
"""Values below 2**8 µs have one bucket each. Above, each doubling has half as many buckets."""
_HALF: Final = 1 << (_LINEAR_BITS - 1)
_MAX_US: Final = (1 << 36) - 1
"""Nineteen hours; longer durations are clamped to it."""
BUCKETS: Final = ((_MAX_US.bit_length() - _LINEAR_BITS) + 2) * _HALF

QUANTILES: Final = (0.5, 0.9, 0.99, 0.999)


def bucket_of(us: int) -> int:
    """Return the bucket of a duration in whole microseconds, 0 to `_MAX_US`."""
    shift = us.bit_length() - _LINEAR_BITS
    return us if shift <= 0 else (shift << (_LINEAR_BITS - 1)) + (us >> shift)


def lowest_us(bucket: int) -> int:
    """Return the shortest duration in a bucket."""
    if bucket < 2 * _HALF:
        return bucket
    shift = (bucket >> (_LINEAR_BITS - 1)) - 1
    return (bucket - (shift << (_LINEAR_BITS - 1))) << shift


def middle_us(bucket: int) -> float:
    """Return the duration that represents a bucket."""
    low = lowest_us(bucket)
    return low if bucket < 2 * _HALF else (low + lowest_us(bucket + 1)) / 2


class LatencyHistogram:
    """Counts of durations.

    Attributes:
        count: how many were recorded, including weights.
        max_us: the exact maximum.
    """

    __slots__ = ("_counts", "count", "max_us", "sum_us")

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self.count = 0
        self.sum_us = 0
        self.max_us = 0

    def record(self, us: int, weight: int = 1) -> None:
        """Count a duration; negative values count as zero."""
        if us < 0:
            us = 0
        elif us > _MAX_US:
            us = _MAX_US
        shift = us.bit_length() - _LINEAR_BITS
        # `bucket_of`, inlined because this runs for every frame.
        self._counts[us if shift <= 0 else (shift << (_LINEAR_BITS - 1)) + (us >> shift)] += weight
        self.count += weight
        self.sum_us += us * weight
        if us > self.max_us:  # noqa: PLR1730  (a call would cost more than the rest)
            self.max_us = us

    def note_max(self, us: int) -> None:
        """Update the maximum with a duration that is counted in the weight of another one."""
        self.max_us = max(self.max_us, min(us, _MAX_US))

    def quantile_us(self, share: float) -> float:
        """Return the duration that `share` of all values do not exceed; 0 if empty."""
        wanted = max(1, share * self.count)
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted - 1e-9:
                return min(middle_us(bucket), self.max_us)
        return 0.0

    @property
    def mean_us(self) -> float:
        """The mean; 0 if empty."""
        return self.sum_us / self.count if self.count else 0.0

    def buckets(self) -> list[tuple[int, int]]:
        """Return bucket and count of all nonempty buckets, shortest durations first."""
        return [(bucket, count) for bucket, count in enumerate(self._counts) if count]

    def pack(self) -> list[int]:
        """Pack the histogram into a list to send: maximum, sum, then bucket, count, …."""
        return [self.max_us, self.sum_us, *(number for pair in self.buckets() for number in pair)]

    def merge(self, packed: Sequence[int]) -> None:
        """Add a packed histogram."""
        if len(packed) < 2:
            return
        self.max_us = max(self.max_us, packed[0])
        self.sum_us += packed[1]
        for bucket, count in zip(packed[2::2], packed[3::2], strict=True):
            self._counts[bucket] += count
            self.count += count


def merged(parts: Iterable[Sequence[int]]) -> LatencyHistogram:
    """Merge packed histograms into one."""
    whole = LatencyHistogram()
    for packed in parts:
        whole.merge(packed)
    return whole
