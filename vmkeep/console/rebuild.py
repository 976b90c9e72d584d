"""Writes back to the directory what the sets of a backup root know and the directory lacks. Called by the command line.

A machine's entry comes from the newest set whose LDIF can be trusted, its leaves from the manifests. What is there is
never changed, so the same call may be made again and again.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import groupby

from vmkeep.console.rights import needing_the_admin
from vmkeep.console.sets import BackupSet, read_ldif
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute, ObjectClass
from vmkeep.directory.alignment import Change, changes, read_saved
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.equality import normal_dn
from vmkeep.directory.port import Attributes


class Kind(Enum):
    """What became of one thing."""

    ENTRY = "entries"
    BACKUP_SUBTREE = "ou=backup"
    LEAF = "leaves"
    THERE = "there already"
    REFUSED = "refused"


_ADDED = (Kind.ENTRY, Kind.BACKUP_SUBTREE, Kind.LEAF)
_BACKUP_SUBTREE = {"objectClass": ("top", ObjectClass.ORGANIZATIONAL_UNIT, ObjectClass.BACKUP), "ou": ("backup",)}


@dataclass(frozen=True)
class Told:
    """One thing of one machine, and a sentence on it; nothing is said of what is there already."""

    kind: Kind
    sentence: str = ""


def rebuild(catalogue: Catalogue, sets: Iterable[BackupSet], *, rehearse: bool = False) -> Iterator[Told]:
    """Add what is missing, machine by machine. `sets` are sorted by machine and time; a rehearsal writes nothing."""
    for machine, of_machine in groupby(sets, key=lambda one: one.manifest.machine):
        try:
            with needing_the_admin(machine):
                yield from _Machine(catalogue, machine, list(of_machine), rehearse).rebuild()
        except Refused as why:
            # One machine's trouble is no reason to leave the others out.
            yield Told(Kind.REFUSED, why.sentence)


def summary(told: Sequence[Told], sets: Sequence[BackupSet], *, rehearse: bool) -> str:
    """How much was written, in one sentence."""
    counted = {kind: sum(one.kind is kind for one in told) for kind in Kind}
    machines = len({one.manifest.machine for one in sets})
    added = ", ".join(f"{counted[kind]} {kind.value}" for kind in _ADDED)
    rest = ", ".join(f"{counted[kind]} {kind.value}" for kind in Kind if kind not in _ADDED and counted[kind])
    verb = "would be written" if rehearse else "written"
    return f"{len(sets)} sets of {machines} machines: {added} {verb}" + (f"; {rest}" if rest else "")


@dataclass(frozen=True)
class _Machine:
    """One machine's sets, oldest first."""

    catalogue: Catalogue
    name: str
    sets: Sequence[BackupSet]
    rehearse: bool

    def rebuild(self) -> Iterator[Told]:
        tree = self.catalogue.tree
        saved: tuple[Change, ...] = ()
        if self.catalogue.machine_entry(self.name) is None:
            saved = yield from self._saved()
        plan = tree.machine_plan(self.name)
        for change in saved:
            kind = Kind.BACKUP_SUBTREE if normal_dn(change.dn) == normal_dn(plan) else Kind.ENTRY
            yield self._added(kind, change.dn, change.attributes)
        from_saved = normal_dn(plan) in [normal_dn(change.dn) for change in saved]
        if not from_saved and self.catalogue.store.read(plan, ["ou"]) is None:
            yield self._added(Kind.BACKUP_SUBTREE, plan, _BACKUP_SUBTREE)
        there = {leaf.timestamp for leaf in self.catalogue.leaves(self.name)}
        for one in self.sets:
            timestamp = one.manifest.timestamp
            if timestamp in there:
                yield Told(Kind.THERE)
            else:
                there.add(timestamp)  # a second copy in another storage pool
                yield self._added(Kind.LEAF, tree.leaf(self.name, timestamp), _leaf(one))

    def _saved(self) -> Generator[Told, None, tuple[Change, ...]]:
        """What the newest set adds whose LDIF may be written."""
        for one in reversed(self.sets):
            try:
                entries = read_saved(read_ldif(one), self.name, self.catalogue.tree)
            except Refused as why:
                yield Told(Kind.REFUSED, why.sentence)
            else:
                return changes(entries, (), self.name, self.catalogue.tree)
        raise Refused(
            ReturnValue.CANNOT_COPY_BACKEND_FILE,
            f"{self.name}: its entry is gone and no set holds one that may be written back; "
            "add it by hand (ldapadd), then run this again for the leaves",
        )

    def _added(self, kind: Kind, dn: str, attributes: Attributes) -> Told:
        if self.rehearse:
            return Told(kind, f"{self.name}: would add {dn}")
        if not self.catalogue.store.add(dn, attributes):
            return Told(Kind.THERE)
        return Told(kind, f"{self.name}: added {dn}")


def _leaf(one: BackupSet) -> Attributes:
    manifest = one.manifest
    return {
        "objectClass": ("top", ObjectClass.ORGANIZATIONAL_UNIT, ObjectClass.PROVISIONING, ObjectClass.LEAF),
        "ou": (manifest.timestamp,),
        Attribute.EXECUTION_DATE: ("0",),
        Attribute.MODE: (Mode.FINISHED,),
        Attribute.STATE: (manifest.timestamp,),
        Attribute.RETURN_VALUE: ("0",),
        Attribute.SET_DIRECTORY: (str(one.directory),),
        Attribute.MANIFEST_DIGEST: (one.digest,),
        Attribute.SIZE: (str(manifest.size),),
        Attribute.CONSISTENCY: (manifest.consistency,),
    }
