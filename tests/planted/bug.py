"""A bug to be planted: what it changes, what it would cost, and which tests must notice."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """One change of a file below the project's root; `old` stands there exactly once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Bug:
    """`name` and `cost` are for people; `tests` are pytest's names, and every one of them has to fail."""

    name: str
    cost: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
