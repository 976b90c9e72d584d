"""All machines at once, with the entries their plans come from: a handful of searches, however many machines there are.

The controller's `run --all` and the console's `status` read through this.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from vmkeep.contract.machine import Machine
from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import Source
from vmkeep.directory.catalogue import Catalogue, is_plan, unescape_rdn
from vmkeep.directory.port import Entry, Equals

BACKUP_SUBTREES = Equals("ou", "backup")
_PARENT = re.compile(rf"ou=backup,\s*(?:{Attribute.MACHINE}|{Attribute.POOL})=((?:\\.|[^,\\])+),", re.IGNORECASE)


@dataclass(frozen=True)
class Surveyed:
    """One machine and its plan's sources in order of precedence."""

    machine: Machine
    sources: tuple[Source, ...]


def survey(catalogue: Catalogue) -> Iterator[Surveyed]:
    """Every machine and template of the directory, without disks."""
    own = subtrees_by_name(catalogue.store.search(catalogue.tree.machines, BACKUP_SUBTREES))
    return with_sources(catalogue, own)


def survey_one(catalogue: Catalogue, name: str) -> Surveyed | None:
    """One machine, as `survey` would show it; None where the directory has none of that name."""
    machine = catalogue.machine(name)
    return Surveyed(machine, catalogue.plan_sources(machine)) if machine else None


def with_sources(catalogue: Catalogue, own: Mapping[str, Entry]) -> Iterator[Surveyed]:
    """Every machine, with its own ou=backup as read before and the plans of pools and cluster."""
    pools = subtrees_by_name(catalogue.store.search(catalogue.tree.pools, BACKUP_SUBTREES))
    cluster = _sources("cluster", catalogue.store.read(catalogue.tree.cluster_plan))
    for machine in catalogue.machines():
        entry = own.get(machine.name.casefold())
        by_pool = (source for pool in machine.pools for source in _sources("pool", pools.get(pool.casefold())))
        sources = (*_sources("machine", entry), *by_pool, *cluster)
        yield Surveyed(replace(machine, has_backup_subtree=entry is not None), sources)


def subtrees_by_name(entries: Iterator[Entry]) -> dict[str, Entry]:
    """ou=backup entries by the folded name of the machine or pool they belong to."""
    found = ((_PARENT.match(entry.dn), entry) for entry in entries)
    return {unescape_rdn(match.group(1)).casefold(): entry for match, entry in found if match}


def _sources(origin: str, entry: Entry | None) -> tuple[Source, ...]:
    if entry is None or not is_plan(entry):
        return ()
    return (Source(origin, entry.dn, entry.attributes),)
