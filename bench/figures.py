"""What one row says: medians with their spread, the bar, and whether it is met. Pure; made by rows."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

MEETS, MISSES = "at or better than its bar", "MISSES its bar"


@dataclass(frozen=True)
class Spread:
    """A median, the least and the most of some samples."""

    median: float
    least: float
    most: float
    count: int


@dataclass(frozen=True)
class Figure:
    """One line of the table. `value` is what is held against `bar`: at most that much, in `unit`.

    `ours` and `raw` are what vmkeep and its twin took, in `sample_unit`; None where there is nothing of the kind.
    """

    row: str
    measured: str
    amount: str
    twin: str
    value: Spread
    bar: float
    unit: str = "×"
    ours: Spread | None = None
    raw: Spread | None = None
    sample_unit: str = "s"
    note: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the median is at the bar or better."""
        return self.value.median <= self.bar

    @property
    def verdict(self) -> str:
        """The same in words."""
        return MEETS if self.is_met else MISSES


def spread(samples: Sequence[float]) -> Spread:
    """Median and range of one sample or more."""
    if not samples:
        raise ValueError("nothing was measured, so there is no median")
    return Spread(statistics.median(samples), min(samples), max(samples), len(samples))


def ratios(ours: Sequence[float], raw: Sequence[float]) -> list[float]:
    """Each of ours against its neighbour in time."""
    return [mine / theirs for mine, theirs in zip(ours, raw, strict=True)]


def differences(ours: Sequence[float], raw: Sequence[float]) -> list[float]:
    """What each of ours took longer than its neighbour in time."""
    return [mine - theirs for mine, theirs in zip(ours, raw, strict=True)]


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that `percent` of all do not exceed (nearest rank)."""
    if not samples or not 0 < percent <= 100:
        raise ValueError(f"no percentile {percent} of {len(samples)} samples")
    return sorted(samples)[ceil(len(samples) * percent / 100) - 1]
