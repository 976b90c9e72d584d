"""One run of the benchmarks: where, how much, how often. Made by the command line, handed to every row."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Session:
    """`folder` is empty and goes afterwards. `quick` takes less of everything and proves nothing."""

    folder: Path
    runs: int
    quick: bool
    say: Callable[[str], None]

    def choose(self, full: Choice, quick: Choice) -> Choice:
        """The size of something in this run."""
        return quick if self.quick else full
