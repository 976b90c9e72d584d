"""Whether a filter takes an entry, by the directory's rules. Pure; called by the in-memory twin and by claims."""

from vmkeep.directory.equality import has_equality, normal_value
from vmkeep.directory.port import ANYTHING, AllOf, AnyOf, AtLeast, Entry, Equals, Filter, Not, Present


def meets(entry: Entry, provided: Filter) -> bool:
    """Whether an entry is as a claim or deletion wants it; without a wish, whatever of it may be read."""
    return provided == ANYTHING or matches(entry, provided)


def matches(entry: Entry, matching: Filter) -> bool:
    """Whether a filter takes an entry."""
    match matching:
        case Equals(name, value):
            wanted = normal_value(name, value)
            return has_equality(name) and wanted in (normal_value(name, held) for held in entry.all(name))
        case AtLeast(name, number):
            return any(_at_least(held, number) for held in entry.all(name))
        case Present(name):
            return bool(entry.all(name))
        case Not(part):
            return not matches(entry, part)
        case AllOf(parts):
            return all(matches(entry, part) for part in parts)
        case AnyOf(parts):
            return any(matches(entry, part) for part in parts)


def _at_least(held: str, number: int) -> bool:
    try:
        return int(held) >= number
    except ValueError:
        return False
