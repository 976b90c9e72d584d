"""What is not as it must be, in words."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """One thing that is not as it must be."""

    machine: str
    invariant: str
    seen: str

    def __str__(self) -> str:
        return f"{self.machine}: {self.invariant} is violated: {self.seen}"
