"""Reads what `vmkeep status` shows, with one search for machines and one for everything below them that matters."""

from collections.abc import Iterator
from dataclasses import dataclass

from vmkeep.contract.leaf import Leaf
from vmkeep.contract.names import Attribute
from vmkeep.directory.catalogue import LEAVES, Catalogue, leaf_of
from vmkeep.directory.port import AnyOf, Entry
from vmkeep.directory.survey import BACKUP_SUBTREES, Surveyed, subtrees_by_name, survey_one, with_sources

_LEAF_ATTRIBUTES = (
    Attribute.MODE,
    Attribute.STATE,
    Attribute.RETURN_VALUE,
    Attribute.EXECUTION_TIME,
    Attribute.MESSAGE,
    Attribute.ATTEMPTS,
    Attribute.PERCENT,
    Attribute.SIZE,
    Attribute.MANIFEST_DIGEST,
    Attribute.RESTORE_FROM,
    Attribute.GROUP,
    Attribute.GROUP_SPREAD,
    Attribute.GROUP_CONSISTENCY,
    Attribute.BANDWIDTH,
)
_PLAN_ATTRIBUTES = (
    *(Attribute.EXCLUDE, Attribute.PROMISE),
    *(Attribute.WINDOW, Attribute.CRON_ACTIVE),
    *(Attribute.CRON_MINUTE, Attribute.CRON_HOUR),
    *(Attribute.CRON_DAY, Attribute.CRON_MONTH, Attribute.CRON_DAY_OF_WEEK),
)
_READ = ("objectClass", "ou", *_PLAN_ATTRIBUTES, *_LEAF_ATTRIBUTES)


@dataclass(frozen=True)
class Reading:
    """Machines with what their plans come from, and all their leaves."""

    machines: list[Surveyed]
    leaves: list[Leaf]


def read_all(catalogue: Catalogue) -> Reading:
    """The whole cluster."""
    leaves: list[Leaf] = []
    subtrees: list[Entry] = []
    for entry in catalogue.store.search(catalogue.tree.machines, AnyOf((LEAVES, BACKUP_SUBTREES)), attributes=_READ):
        leaf = leaf_of(entry)
        if leaf is None:
            subtrees.append(entry)
        else:
            leaves.append(leaf)
    return Reading(list(with_sources(catalogue, subtrees_by_name(iter(subtrees)))), leaves)


def read_one(catalogue: Catalogue, name: str) -> Reading | None:
    """One machine; None where the directory has none of that name."""
    found = survey_one(catalogue, name)
    return Reading([found], list(_leaves_of(catalogue, found))) if found else None


def _leaves_of(catalogue: Catalogue, found: Surveyed) -> Iterator[Leaf]:
    yield from catalogue.leaves(found.machine.name)
