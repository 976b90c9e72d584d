"""Whether a controller could work: the directory answers, knows the schema, and has the tree; and whether every
machine has the backup it is promised. Called by `check`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from controller.promises import lacking
from vmkeep.contract.names import OIDS
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.lease import read_lease

_SUBSCHEMA = "cn=subschema"
_OID = re.compile(r"\(\s*([0-9.]+)\s")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    is_well: bool
    sentence: str
    is_note: bool = False

    @property
    def word(self) -> str:
        """How it stands, in seven letters."""
        return "note   " if self.is_note else "well   " if self.is_well else "MISSING"


def check(catalogue: Catalogue, now: datetime) -> Iterator[Finding]:
    """Everything worth looking at, in order; raises what the store raises when the directory cannot be reached."""
    tree = catalogue.tree
    top = catalogue.store.read(tree.machines, ("objectClass",))
    yield Finding(True, "the directory answers and knows who we are")
    yield _schema(catalogue)
    for dn, there in ((tree.machines, top), (tree.cluster_plan, catalogue.store.read(tree.cluster_plan))):
        yield Finding(there is not None, f"{dn} {'is there' if there else 'is missing, or we may not read it: add it'}")
    lease = read_lease(catalogue.store, tree)
    yield Finding(True, lease.sentence(now) if lease else f"{tree.lease}: not yet there; `serve` adds it")
    if top is not None:
        yield from _promises(catalogue, now)


def _promises(catalogue: Catalogue, now: datetime) -> Iterator[Finding]:
    found = lacking(catalogue, now)
    yield from (Finding(False, sentence) for _, sentence in found.sentences())
    if not found.broken:
        yield Finding(True, "every machine has the good backup that its plan promises, where it does (vmkeepPromise)")
    if found.not_covered:
        yield Finding(True, found.not_covered, is_note=True)


def _schema(catalogue: Catalogue) -> Finding:
    entry = catalogue.store.read(_SUBSCHEMA, ("attributeTypes", "objectClasses"))
    if entry is None:
        return Finding(False, f"{_SUBSCHEMA} cannot be read: let everybody read it (olcAccess of the frontend)")
    known = {
        found.group(1)
        for definition in (*entry.all("attributeTypes"), *entry.all("objectClasses"))
        if (found := _OID.match(definition))
    }
    missing = sorted(str(name) for name, oid in OIDS.items() if oid not in known)
    if missing:
        return Finding(False, f"the schema lacks {', '.join(missing)}: load schema/sst.ldif and schema/vmkeep.ldif")
    return Finding(True, f"the schema has all {len(OIDS)} attributes and classes")
