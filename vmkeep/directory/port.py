"""The store as every other part sees it: entries, filters, claims.

Controller, agent and console hold a `Store` and never learn which one. `openldap` is the real one, `memory` its twin;
both pass the same conformance suite (tests/slapd/conformance).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Protocol, TypeAlias

Attributes: TypeAlias = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Entry:
    """One entry as read. Attribute names compare without case, as they do in LDAP; values are strings in read order."""

    dn: str
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def all(self, name: str) -> tuple[str, ...]:
        """Every value of an attribute; empty where the entry has none."""
        wanted = name.casefold()
        return next((values for known, values in self.attributes.items() if known.casefold() == wanted), ())

    def first(self, name: str) -> str | None:
        """The first value of an attribute, or None."""
        return next(iter(self.all(name)), None)

    def has_class(self, name: str) -> bool:
        """Whether objectClass names this class."""
        return name.casefold() in {value.casefold() for value in self.all("objectClass")}


@dataclass(frozen=True)
class Equals:
    """attribute = value, by the attribute's own equality rule. Without one nothing matches: compare in the client."""

    name: str
    value: str


@dataclass(frozen=True)
class Present:
    """The entry has the attribute."""

    name: str


@dataclass(frozen=True)
class AtLeast:
    """The attribute holds this number or a greater one; only for attributes with an ordering rule."""

    name: str
    number: int


@dataclass(frozen=True)
class Not:
    """The part does not match. An attribute the directory's schema does not know is neither matched nor not."""

    part: Filter


@dataclass(frozen=True)
class AllOf:
    """Every one of the parts matches."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one of the parts matches."""

    parts: tuple[Filter, ...]


Filter: TypeAlias = Equals | AtLeast | Present | Not | AllOf | AnyOf

ANYTHING = Present("objectClass")


class Scope(Enum):
    """How far below the base a search looks."""

    BASE = "base"
    CHILDREN = "children"  # one level
    SUBTREE = "subtree"


class Claim(Enum):
    """How a compare-and-set ended. The loser does nothing."""

    WON = "won"
    LOST = "lost"


class Watcher(Protocol):
    """A running watch; a context manager. `kind` says whether the server notifies or is polled."""

    @property
    def kind(self) -> str:
        """'sync' where the server sends changes, 'poll' where it is asked."""

    def alive(self) -> bool:
        """Whether changes would still be noticed, and all before were told; a dead one reconnects by itself.

        It is alive again only after it has woken its owner.
        """

    def close(self) -> None:
        """Stop watching; returns when no further wake-up can come."""

    def __enter__(self) -> Watcher: ...

    def __exit__(self, *reason: object) -> None: ...


class Store(Protocol):
    """What the directory can do for us. Every call has a time limit.

    Raises TryLater (`Unreachable`) when the server is away, read-only, full or too slow, and Refused when it says no
    for good (access, schema), with the directory's own words in the sentence.
    """

    def read(self, dn: str, attributes: Sequence[str] = ()) -> Entry | None:
        """One entry, with these attributes (default: all user attributes); None where there is no such entry."""

    def search(
        self, base: str, matching: Filter = ANYTHING, scope: Scope = Scope.SUBTREE, attributes: Sequence[str] = ()
    ) -> Iterator[Entry]:
        """The entries below base, read page by page; nothing where the base does not exist."""

    def add(self, dn: str, attributes: Attributes) -> bool:
        """Add an entry; False where one of that name exists. After a lost answer the entry is read again first."""

    def claim(
        self,
        dn: str,
        expected: Mapping[str, str],
        changes: Attributes,
        additions: Attributes | None = None,
        provided: Filter = ANYTHING,
    ) -> Claim:
        """One modify that holds only if every expected value is still there and the entry matches `provided`.

        `expected` names single-valued attributes with an equality rule, and the value each must have now. `changes`
        replaces attributes (an empty sequence removes one); an expected attribute that is not changed keeps its value.
        `additions` adds values beside those present, and passes over those that are there already. Nothing is written
        when LOST (a value differs, the entry does not match, or is gone). After a lost answer the entry is read again,
        and the claim counts as won when it shows every changed value.
        """

    def replace(self, dn: str, changes: Attributes) -> bool:
        """Replace attributes without a condition: admin edits, never a leaf's mode. False where the entry is gone."""

    def delete(self, dn: str, provided: Filter = ANYTHING) -> bool:
        """Delete one entry without children; False where there is none, or none that matches `provided`."""

    def watch(self, base: str, matching: Filter, wake: Callable[[], None], *, polls: bool = True) -> Watcher:
        """Call `wake` whenever a matching entry may have changed, entered or left, and after each (re)connect.

        It is called from another thread, once after the start too, and must neither block nor raise. Without `polls` a
        server that cannot notify is not asked what changed, and such a watch is never alive: for many entries.
        """

    def close(self) -> None:
        """Let go of every connection."""
