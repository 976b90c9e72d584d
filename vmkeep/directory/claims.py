"""A claim as one modify, and what an entry tells about a claim whose answer was lost. Pure; called by the store.

The old value is deleted and the new one added in the same modify, so that a server without our value refuses all of it:
compare and set in plain LDAP, which `ldapmodify` can do as well.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vmkeep.directory.equality import normal_value, same_values
from vmkeep.directory.filters import octets
from vmkeep.directory.matching import meets
from vmkeep.directory.port import ANYTHING, Attributes, Claim, Entry, Filter

ADD, DELETE, REPLACE = "MODIFY_ADD", "MODIFY_DELETE", "MODIFY_REPLACE"

Changes = dict[str, list[tuple[str, list[bytes]]]]


def encoded(values: Iterable[str]) -> list[bytes]:
    """Values as they are sent; bytes that were no text when read go back as they came."""
    return [octets(value) for value in values]


def shows(entry: Entry, wanted: Attributes) -> bool:
    """Whether the entry holds exactly these values of these attributes."""
    return all(same_values(name, entry.all(name), values) for name, values in wanted.items())


@dataclass(frozen=True)
class ClaimRequest:
    """What a claim expects and writes; see Store.claim."""

    expected: Mapping[str, str]
    changes: Attributes
    additions: Attributes = field(default_factory=dict)
    provided: Filter = ANYTHING

    def modifications(self) -> Changes:
        """The modify, expected values first."""
        new = {name.casefold(): values for name, values in self.changes.items()}
        request: Changes = {}
        for name, old in self.expected.items():
            request[str(name)] = _exchanged(old, new.pop(name.casefold(), (old,)))
        for name, values in self.changes.items():
            if name.casefold() in new:
                request[str(name)] = [(REPLACE, encoded(values))]
        for name, values in self.additions.items():
            if values:
                request.setdefault(str(name), []).append((ADD, encoded(values)))
        return request

    def outcome(self, entry: Entry | None) -> Claim | None:
        """WON where the entry shows all of it, LOST where it can no longer be won, None where nothing happened."""
        if entry is None:
            return Claim.LOST
        if shows(entry, self._afterwards()):
            return Claim.WON
        is_as_expected = shows(entry, {name: (value,) for name, value in self.expected.items()})
        return None if is_as_expected and meets(entry, self.provided) else Claim.LOST

    def without_additions_in(self, entry: Entry) -> "ClaimRequest":
        """The same claim with only those additions the entry does not hold yet."""
        left = {name: _missing(name, values, entry) for name, values in self.additions.items()}
        return ClaimRequest(self.expected, self.changes, left, self.provided)

    def _afterwards(self) -> Attributes:
        changed = {name.casefold() for name in self.changes}
        kept = {name: (value,) for name, value in self.expected.items() if name.casefold() not in changed}
        return {**kept, **self.changes}


def _exchanged(old: str, new: Sequence[str]) -> list[tuple[str, list[bytes]]]:
    removal = (DELETE, encoded((old,)))
    return [removal, (ADD, encoded(new))] if new else [removal]


def _missing(name: str, values: Sequence[str], entry: Entry) -> tuple[str, ...]:
    present = {normal_value(name, value) for value in entry.all(name)}
    return tuple(value for value in values if normal_value(name, value) not in present)
