"""Machines, plans and leaves as the directory holds them, read into the contract's values, and the claims on leaves.

The controller, the agent and the console read through this; a leaf's mode is written nowhere else.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vmkeep.contract.leaf import NOW, Leaf, Wishes
from vmkeep.contract.machine import DirectoryDisk, Machine
from vmkeep.contract.modes import TABLE, Circle, Mode
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.contract.plan import Source
from vmkeep.contract.timestamps import is_timestamp
from vmkeep.directory.port import ANYTHING, AllOf, AnyOf, AtLeast, Claim, Entry, Equals, Filter, Not, Scope, Store

_LEAF_DN = re.compile(
    rf"ou=([^,\\]+),\s*ou=backup,\s*{Attribute.MACHINE}=((?:\\.|[^,\\])+),\s*ou=virtual machines,", re.IGNORECASE
)
# Greedy: the last such part names the machine, whatever the names below it hold.
_OF_MACHINE = re.compile(rf"(?:.*,)?\s*{Attribute.MACHINE}=((?:\\.|[^,\\])+),\s*ou=virtual machines,", re.IGNORECASE)
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_ESCAPED = re.compile(r"((?:\\[0-9A-Fa-f]{2})+)|\\(.)")
_STANDING = ("objectClass", "ou", Attribute.MODE, Attribute.STATE, Attribute.RETURN_VALUE)
LEAVES = Equals("objectClass", ObjectClass.PROVISIONING)
STARTING_OR_WORKING = AllOf((LEAVES, Equals(Attribute.STATE, NOW)))
# A restore that is backed out of leaves these modes for one that asks nobody for anything.
_IN_RESTORE = tuple(Equals(Attribute.MODE, row.mode) for row in TABLE if row.circle is Circle.RESTORE)
CONCERNING_AGENTS = AllOf((LEAVES, AnyOf((Equals(Attribute.STATE, NOW), *_IN_RESTORE))))


@dataclass(frozen=True)
class Report:
    """What a claim writes beside the mode. `extra` replaces further attributes, an empty sequence removes one."""

    state: str
    return_value: int = 0
    message: str | None = None
    extra: Mapping[str, Sequence[str]] = field(default_factory=dict)


def _no_epoch() -> None:
    """Of agents and admins, who need no lease."""


class Catalogue:
    """The directory in the contract's words. Raises what the store raises.

    What a controller with an `epoch` writes on a leaf carries it, and fails where a later one has written before.
    """

    def __init__(self, store: Store, tree: Tree, epoch: Callable[[], int | None] = _no_epoch) -> None:
        self.store = store
        self.tree = tree
        self.epoch = epoch

    # machines

    def machine(self, name: str) -> Machine | None:
        """One machine with its disks, in the order of their targets; None where the directory has none of that name."""
        entries = list(self.store.search(self.tree.machine(name), scope=Scope.SUBTREE))
        own = next((entry for entry in entries if entry.has_class(ObjectClass.MACHINE)), None)
        if own is None:
            return None
        disks = tuple(
            sorted((disk_of(entry) for entry in entries if entry.has_class(ObjectClass.DISK)), key=_target_order)
        )
        has_backup = any(_is_backup_subtree(entry.dn) for entry in entries)
        return replace(_machine(own), disks=disks, has_backup_subtree=has_backup)

    def machine_entry(self, name: str) -> Machine | None:
        """One machine without its disks: a single read."""
        entry = self.store.read(self.tree.machine(name))
        return _machine(entry) if entry and entry.has_class(ObjectClass.MACHINE) else None

    def machines(self) -> Iterator[Machine]:
        """Every machine and template, without its disks."""
        for entry in self.store.search(self.tree.machines, Equals("objectClass", ObjectClass.MACHINE), Scope.CHILDREN):
            yield _machine(entry)

    def subtree(self, name: str) -> list[Entry]:
        """A machine's entries for keeping: parents first, without the leaves."""
        entries = self.store.search(self.tree.machine(name))
        kept = [entry for entry in entries if not entry.has_class(ObjectClass.PROVISIONING)]
        return sorted(kept, key=lambda entry: (_depth(entry.dn), entry.dn))

    def naming_images(self, paths: Collection[str]) -> Iterator[tuple[str, str, str]]:
        """Machine, path and DN of every entry whose sstSourceFile is one of these paths, to the letter."""
        wanted = AnyOf(tuple(Equals(Attribute.SOURCE_FILE, path) for path in paths))
        for entry in self.store.search(self.tree.machines, wanted, attributes=(Attribute.SOURCE_FILE,)):
            found, path = _OF_MACHINE.match(entry.dn), entry.first(Attribute.SOURCE_FILE) or ""
            # The server compares without case; to the host /a and /A are two files.
            if found and path in paths:
                yield unescape_rdn(found.group(1)), path, entry.dn

    # plans

    def plan_sources(self, machine: Machine) -> tuple[Source, ...]:
        """The entries that make a machine's plan, in order of precedence."""
        places = [("machine", self.tree.machine_plan(machine.name))]
        places += [("pool", self.tree.pool_plan(pool)) for pool in machine.pools]
        places += [("cluster", self.tree.cluster_plan)]
        return tuple(source for origin, dn in places if (source := self._source(origin, dn)))

    def add_backup_subtree(self, machine: str) -> bool:
        """Create a machine's ou=backup; with the backup class, so that an admin can add plan attributes at once."""
        classes = ("top", ObjectClass.ORGANIZATIONAL_UNIT, ObjectClass.BACKUP)
        return self.store.add(self.tree.machine_plan(machine), {"objectClass": classes, "ou": ("backup",)})

    def _source(self, origin: str, dn: str) -> Source | None:
        entry = self.store.read(dn)
        if entry is None or not is_plan(entry):
            return None
        return Source(origin, dn, entry.attributes)

    # leaves

    def leaf(self, dn: str) -> Leaf | None:
        """One leaf, read afresh."""
        entry = self.store.read(dn)
        return leaf_of(entry) if entry else None

    def start_wait(self, dn: str) -> int:
        """For how many seconds a leaf has its machine wait to run on; 0 where it does not, or is gone."""
        entry = self.store.read(dn, (Attribute.START_WAIT,))
        return (_number(entry, Attribute.START_WAIT) or 0) if entry else 0

    def leaves(self, machine: str | None = None, matching: Filter = LEAVES) -> Iterator[Leaf]:
        """Leaves of one machine or of all, oldest first within nothing but the server's order."""
        base = self.tree.machine_plan(machine) if machine else self.tree.machines
        for entry in self.store.search(base, matching):
            leaf = leaf_of(entry)
            if leaf:
                yield leaf

    def standing_leaves(self, machine: str | None = None, also: Sequence[Attribute] = ()) -> Iterator[Leaf]:
        """Every leaf of one machine or of all with its mode and what else is named, and nothing more of it."""
        base = self.tree.machine_plan(machine) if machine else self.tree.machines
        for entry in self.store.search(base, LEAVES, attributes=(*_STANDING, *also)):
            leaf = leaf_of(entry)
            if leaf:
                yield leaf

    def add_leaf(self, machine: str, timestamp: str, now: str, message: str = "") -> bool:
        """The first step of a backup; False where that leaf exists."""
        return self.store.add(
            self.tree.leaf(machine, timestamp),
            {
                "objectClass": ("top", ObjectClass.ORGANIZATIONAL_UNIT, ObjectClass.PROVISIONING, ObjectClass.LEAF),
                "ou": (timestamp,),
                Attribute.EXECUTION_DATE: ("0",),
                Attribute.MODE: (Mode.INITIALIZE,),
                Attribute.STATE: (now,),
                Attribute.RETURN_VALUE: ("0",),
                Attribute.MESSAGE: (message,) if message else (),
                **self._mark(),
            },
        )

    def claim(self, leaf: Leaf, mode: Mode, report: Report) -> Claim:
        """Move a leaf from what was read to `mode`, with state, return value and message in the same modify."""
        changes: dict[str, Sequence[str]] = {
            Attribute.MODE: (mode,),
            Attribute.STATE: (report.state,),
            Attribute.RETURN_VALUE: (str(report.return_value),),
            **report.extra,
        }
        if report.message is not None:
            changes[Attribute.MESSAGE] = (report.message,) if report.message else ()
        return self.note(leaf, changes)

    def note(self, leaf: Leaf, changes: Mapping[str, Sequence[str]]) -> Claim:
        """Write progress beside a mode that stays as it is; LOST when somebody moved the leaf meanwhile."""
        return self._written(leaf, _as_read(leaf), changes)

    def mark(self, leaf: Leaf) -> Claim:
        """Write our epoch on a leaf, wherever it stands by now; LOST where it is gone, or a later epoch's."""
        return self._written(leaf, {}, {})

    def tell(self, leaf: Leaf, changes: Mapping[str, Sequence[str]]) -> Claim:
        """Write what holds wherever the leaf stands by now; LOST where it is gone, or a later epoch wrote on it."""
        return self._written(leaf, {}, changes)

    def remove(self, leaf: Leaf) -> bool:
        """Delete a leaf that still stands as it was read; False where it does not, or a later epoch wrote on it."""
        parts = (Equals(Attribute.MODE, leaf.raw_mode), Equals(Attribute.STATE, leaf.state), self._of_no_later_epoch())
        return self.store.delete(leaf.dn, AllOf(parts))

    def take_back(self, dn: str) -> bool:
        """Delete a leaf that was only added; False where somebody has moved it on."""
        return self.store.delete(dn, AllOf((Equals(Attribute.MODE, Mode.INITIALIZE), self._of_no_later_epoch())))

    def _written(self, leaf: Leaf, expected: Mapping[str, str], changes: Mapping[str, Sequence[str]]) -> Claim:
        marked = {**changes, **self._mark()}
        return self.store.claim(
            leaf.dn, expected, marked, _class_if_missing(leaf, marked), provided=self._of_no_later_epoch()
        )

    def _mark(self) -> dict[str, Sequence[str]]:
        epoch = self.epoch()
        return {} if epoch is None else {Attribute.EPOCH: (str(epoch),)}

    def _of_no_later_epoch(self) -> Filter:
        epoch = self.epoch()
        return ANYTHING if epoch is None else Not(AtLeast(Attribute.EPOCH, epoch + 1))


def _as_read(leaf: Leaf) -> dict[str, str]:
    return {Attribute.MODE: leaf.raw_mode, Attribute.STATE: leaf.state}


def _class_if_missing(leaf: Leaf, changes: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]] | None:
    """Leaves made by plain LDAP clients may lack our class; our attributes need it."""
    ours = any(
        values and (name.startswith("vmkeep") or name == Attribute.RESTORE_WITHOUT_STATE)
        for name, values in changes.items()
    )
    return {"objectClass": (ObjectClass.LEAF,)} if ours and not leaf.has_leaf_class else None


def leaf_of(entry: Entry) -> Leaf | None:
    """The leaf an entry is; None for entries of another shape or name."""
    found = _LEAF_DN.match(entry.dn)
    timestamp = entry.first("ou") or ""
    if not found or not is_timestamp(timestamp) or not entry.has_class(ObjectClass.PROVISIONING):
        return None
    return Leaf(
        dn=entry.dn,
        machine=unescape_rdn(found.group(2)),
        timestamp=timestamp,
        raw_mode=entry.first(Attribute.MODE) or "",
        state=entry.first(Attribute.STATE) or "",
        execution_date=_number(entry, Attribute.EXECUTION_DATE) or 0,
        return_value=_number(entry, Attribute.RETURN_VALUE) or 0,
        execution_times=entry.all(Attribute.EXECUTION_TIME),
        message=entry.first(Attribute.MESSAGE) or "",
        attempts=_number(entry, Attribute.ATTEMPTS) or 0,
        bytes_done=_number(entry, Attribute.BYTES_DONE),
        bytes_total=_number(entry, Attribute.BYTES_TOTAL),
        percent=_number(entry, Attribute.PERCENT),
        consistency=entry.first(Attribute.CONSISTENCY) or "",
        size=_number(entry, Attribute.SIZE),
        set_directory=entry.first(Attribute.SET_DIRECTORY) or "",
        manifest_digest=entry.first(Attribute.MANIFEST_DIGEST) or "",
        node=entry.first(Attribute.AT_NODE) or "",
        set_node=entry.first(Attribute.SET_NODE) or "",
        conflicts=entry.first(Attribute.CONFLICTS) or "",
        entry=entry.first(Attribute.ENTRY) or "",
        entry_before=entry.first(Attribute.ENTRY_BEFORE) or "",
        wishes=_wishes(entry),
        hold=entry.first(Attribute.HOLD) or "",
        pruned=entry.first(Attribute.PRUNED) or "",
        has_leaf_class=entry.has_class(ObjectClass.LEAF),
        instant=entry.first(Attribute.INSTANT) or "",
        group=entry.first(Attribute.GROUP) or "",
        group_spread=entry.first(Attribute.GROUP_SPREAD) or "",
        group_consistency=entry.first(Attribute.GROUP_CONSISTENCY) or "",
        start_wait=_number(entry, Attribute.START_WAIT),
        started=entry.first(Attribute.STARTED) or "",
        epoch=_number(entry, Attribute.EPOCH),
        bandwidth=max(_number(entry, Attribute.BANDWIDTH) or 0, 0),
    )


def _wishes(entry: Entry) -> Wishes:
    return Wishes(
        disks=entry.all(Attribute.RESTORE_DISK),
        original=entry.first(Attribute.RESTORE_FROM) or "",
        isolated=_is_true(entry, Attribute.RESTORE_ISOLATED),
        keep_mac=_is_true(entry, Attribute.RESTORE_KEEP_MAC),
        keep_old=_is_true(entry, Attribute.KEEP_OLD),
        without_state=_is_true(entry, Attribute.RESTORE_WITHOUT_STATE)
        if entry.first(Attribute.RESTORE_WITHOUT_STATE)
        else None,
        delete_last=_is_true(entry, Attribute.DELETE_LAST),
    )


def _is_true(entry: Entry, name: str) -> bool:
    return (entry.first(name) or "").upper() == "TRUE"


def is_plan(entry: Entry) -> bool:
    """Whether an entry carries attributes of a backup plan."""
    return any(entry.has_class(name) for name in (ObjectClass.BACKUP, ObjectClass.CRON, ObjectClass.PLAN))


def unescape_rdn(text: str) -> str:
    """The value an escaped RDN value stands for (RFC 4514)."""
    return _ESCAPED.sub(
        lambda m: bytes.fromhex(m.group(1).replace("\\", "")).decode() if m.group(1) else m.group(2), text
    )


def _machine(entry: Entry) -> Machine:
    return Machine(
        dn=entry.dn,
        name=entry.first(Attribute.MACHINE) or "",
        node=entry.first(Attribute.NODE),
        pools=entry.all(Attribute.POOL),
        kind=entry.first(Attribute.MACHINE_TYPE) or "persistent",
    )


def disk_of(entry: Entry) -> DirectoryDisk:
    """One disk's entry as the contract knows it."""
    return DirectoryDisk(
        target=entry.first(Attribute.DISK) or "",
        source=entry.first(Attribute.SOURCE_FILE),
        device=(entry.first(Attribute.DEVICE) or "disk").casefold(),
        readonly=_is_true(entry, Attribute.READONLY),
    )


def _target_order(disk: DirectoryDisk) -> tuple[int, str]:
    return len(disk.target), disk.target  # vdb before vdaa


def _number(entry: Entry, name: str) -> int | None:
    value = entry.first(name)
    return int(value) if value is not None and _NUMBER.fullmatch(value) else None


def _is_backup_subtree(dn: str) -> bool:
    return dn.casefold().startswith(f"ou=backup,{Attribute.MACHINE.casefold()}=")


def _depth(dn: str) -> int:
    return len(re.findall(r"(?<!\\),", dn))
