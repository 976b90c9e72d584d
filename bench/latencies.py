"""What a guest's own synced writes took in one phase of a backup. Pure; made by the row `write-latency`."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.figures import percentile


@dataclass(frozen=True)
class Latency:
    """One line of the table, in ms. `silence` is the guest's longest pause between two writes by the host's clock."""

    method: str
    where: str
    phase: str
    p50: float
    p99: float
    worst: float
    silence: float
    writes: int


@dataclass(frozen=True)
class Window:
    """One phase of one run: seconds each write took by the guest's clock, and the host's times of their arrival."""

    taken: Sequence[float]
    arrivals: Sequence[float]

    @property
    def silence(self) -> float:
        """The longest time between two arrivals, in seconds."""
        return max((b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)), default=0.0)


def latency(method: str, where: str, phase: str, windows: Sequence[Window]) -> Latency:
    """All runs of one phase together; ValueError where no write fell into any of them."""
    ms = [1000 * taken for window in windows for taken in window.taken]
    silence = 1000 * max((window.silence for window in windows), default=0.0)
    return Latency(method, where, phase, percentile(ms, 50), percentile(ms, 99), max(ms), silence, len(ms))
