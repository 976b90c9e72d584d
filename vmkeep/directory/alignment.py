"""Brings a machine's entries in line with a saved LDIF, and back: what would change, and the writes that change it.

Never outside the machine, never at or below its ou=backup where there is one, never sstNode or an entry's name. The
agent compares with `changes`, the controller applies them with `align`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.directory.equality import NormalDN, normal_dn, normal_value, rdn_values
from vmkeep.directory.ldif_text import from_ldif
from vmkeep.directory.port import Entry, Store

_PLAN = (
    Attribute.METHOD,
    Attribute.OVERLAY_LIMIT,
    Attribute.BANDWIDTH_COPY,
    Attribute.FREEZE_SECONDS,
    Attribute.DEADLINE,
    Attribute.GROUP,
    Attribute.START_WAIT,
    Attribute.WINDOW,
    Attribute.PROMISE,
    Attribute.KEEP,
)
_ALLOWED = re.compile("|".join((r"sst[a-z0-9-]*|objectclass|ou|cn|description", *_PLAN)), re.IGNORECASE)
_NAMING = re.compile(r"sst[a-z0-9-]*|ou|cn", re.IGNORECASE)
# The server compares these without case; to the host /a and /A are two files.
_BY_CASE = frozenset(
    name.casefold()
    for name in (
        Attribute.SOURCE_FILE,
        "sstSourceName",
        "sstVolumeName",
        "sstStoragePoolURI",
        Attribute.BACKUP_ROOT,
        Attribute.RETAIN_ROOT,
        Attribute.RAM_DISK,
        Attribute.CRON_COMMAND,
    )
)
_BACKUP = frozenset({("ou", "backup")})
_DEVICES = frozenset({("ou", "devices")})


class ChangeKind(Enum):
    """What happens to an entry."""

    ADD = "add"
    MODIFY = "modify"
    REMOVE = "remove"


@dataclass(frozen=True)
class Change:
    """One entry's change. `attributes` is what to write (an empty tuple removes one), `before` what stands there now.

    Of a MODIFY both hold only the attributes that change.
    """

    dn: str
    kind: ChangeKind
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    before: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_saved(text: str, machine: str, tree: Tree) -> tuple[Entry, ...]:
    """The entries of a saved, perhaps edited LDIF, once every name and attribute is seen to be one that may be written.

    Refused (10) names machine, entry, attribute and mend.
    """
    entries = read_before(text, machine, tree)
    own = tree.machine(machine)
    if not any(normal_dn(entry.dn) == normal_dn(own) for entry in entries):
        raise _refused(machine, own, "is missing; take it from the saved LDIF")
    for entry in entries:
        _check_attributes(machine, entry)
    return entries


def read_before(text: str, machine: str, tree: Tree) -> tuple[Entry, ...]:
    """The entries of an LDIF that was written from the live ones, for putting back: any attribute, same names."""
    try:
        entries = from_ldif(text)
    except Refused as why:
        raise Refused(why.code, f"{machine}: {why.sentence}") from None
    seen: set[NormalDN] = set()
    for entry in entries:
        _check_name(machine, entry, tree)
        if normal_dn(entry.dn) in seen:
            raise _refused(machine, entry.dn, "stands there twice; leave one of the two")
        seen.add(normal_dn(entry.dn))
    return tuple(entries)


def changes(
    saved: Sequence[Entry], live: Sequence[Entry], machine: str, tree: Tree, *, exactly: bool = False
) -> tuple[Change, ...]:
    """What makes the live entries like the saved ones, in the order it must be applied; empty when nothing differs.

    `exactly` is for putting back: values are compared to the letter, and entries that were added go again.
    """
    return _Comparison(_by_dn(saved), _by_dn(live), normal_dn(tree.machine(machine)), exactly).changes()


def align(store: Store, wanted: Iterable[Change]) -> None:
    """Apply changes. Done twice it does no harm: what is there already is replaced, what is gone already is fine.

    Raises what the store raises, and TryLater when an entry to be changed is gone: compare and try again.
    """
    for change in wanted:
        match change.kind:
            case ChangeKind.ADD:
                _add(store, change)
            case ChangeKind.MODIFY:
                if not store.replace(change.dn, change.attributes):
                    raise TryLater(f"{change.dn} went away while it was brought in line; it is looked at again")
            case ChangeKind.REMOVE:
                store.delete(change.dn)


@dataclass(frozen=True)
class _Comparison:
    """One machine's saved and live entries, by name."""

    saved: Mapping[NormalDN, Entry]
    live: Mapping[NormalDN, Entry]
    machine: NormalDN
    exactly: bool

    def changes(self) -> tuple[Change, ...]:
        wanted = sorted((dn for dn in self.saved if self._is_ours(dn)), key=len)  # stable: parents first
        added = [
            Change(self.saved[dn].dn, ChangeKind.ADD, dict(self.saved[dn].attributes))
            for dn in wanted
            if dn not in self.live
        ]
        modified = [change for dn in wanted if dn in self.live and (change := self._modified(dn))]
        return (*added, *modified, *self._removed())

    def _is_ours(self, dn: NormalDN) -> bool:
        """Whether an entry may be touched: of the machine, and no history."""
        if not _is_within(dn, self.machine):
            return False
        backup = (_BACKUP, *self.machine)
        return not _is_within(dn, backup) or (dn == backup and backup not in self.live)

    def _modified(self, dn: NormalDN) -> Change | None:
        saved, live = self.saved[dn], self.live[dn]
        fixed = {name.casefold() for name, _ in rdn_values(live.dn)}
        fixed |= {Attribute.NODE.casefold()} if dn == self.machine else set()
        names = {name.casefold(): name for name in (*live.attributes, *saved.attributes)}
        differing = [
            name
            for folded, name in names.items()
            if folded not in fixed and _ALLOWED.fullmatch(name) and not self._same(name, saved, live)
        ]
        if not differing:
            return None
        return Change(
            live.dn,
            ChangeKind.MODIFY,
            {name: saved.all(name) for name in differing},
            {name: live.all(name) for name in differing},
        )

    def _same(self, name: str, saved: Entry, live: Entry) -> bool:
        if self.exactly:
            return sorted(saved.all(name)) == sorted(live.all(name))
        return same(name, saved.all(name), live.all(name))

    def _removed(self) -> list[Change]:
        """Entries that go, deepest first; none that has an entry below it that stays."""
        removed: list[NormalDN] = []
        kept: set[NormalDN] = set()
        for dn in sorted(self.live, key=len, reverse=True):
            if dn in kept or not self._goes(dn):
                kept.update(dn[depth:] for depth in range(len(dn)))
            else:
                removed.append(dn)
        return [Change(self.live[dn].dn, ChangeKind.REMOVE, before=dict(self.live[dn].attributes)) for dn in removed]

    def _goes(self, dn: NormalDN) -> bool:
        if dn in self.saved or not _is_within(dn, self.machine) or _is_within(dn, (_BACKUP, *self.machine)):
            return False
        below_devices = _is_within(dn, (_DEVICES, *self.machine))
        return self.exactly or (below_devices and self.live[dn].has_class(ObjectClass.DISK))


def same(name: str, some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists of values mean the same, in any order; without case but for paths."""
    return sorted(_normal(name, value) for value in some) == sorted(_normal(name, value) for value in others)


def _normal(name: str, value: str) -> str:
    return value if name.casefold() in _BY_CASE else normal_value(name, value)


def _by_dn(entries: Iterable[Entry]) -> dict[NormalDN, Entry]:
    return {normal_dn(entry.dn): entry for entry in entries}


def _is_within(dn: NormalDN, base: NormalDN) -> bool:
    return dn[max(0, len(dn) - len(base)) :] == base


def _add(store: Store, change: Change) -> None:
    if store.add(change.dn, change.attributes):
        return
    dn = normal_dn(change.dn)
    naming = {name.casefold() for name, _ in rdn_values(change.dn)}
    if dn[0] == _BACKUP and any(name == Attribute.MACHINE.casefold() for name, _ in dn[1]):
        return  # made by the controller meanwhile; whose plan it holds is not ours to overwrite
    fixed = naming | {Attribute.NODE.casefold()}
    rest = {name: values for name, values in change.attributes.items() if name.casefold() not in fixed}
    if not store.replace(change.dn, rest):
        raise TryLater(f"{change.dn} went away while it was brought in line; it is looked at again")


# what may be written


def _check_name(machine: str, entry: Entry, tree: Tree) -> None:
    own = normal_dn(tree.machine(machine))
    dn = normal_dn(entry.dn)
    if not _is_within(dn, own):
        raise _refused(machine, entry.dn, "does not belong to the machine; remove it from the LDIF")
    if _is_within(dn, (_BACKUP, *own)) and len(dn) > len(own) + 1:
        raise _refused(machine, entry.dn, "is history of backups, which is never written back; remove it")
    for rdn in dn[: len(dn) - len(own)]:
        for name, value in rdn:
            # Other names may be a second spelling of ou, other letters may count for nothing to the server.
            if not _NAMING.fullmatch(name) or not value.isascii() or not value.isprintable():
                raise _refused(machine, entry.dn, "is named in a way that cannot be compared; remove it from the LDIF")


def _check_attributes(machine: str, entry: Entry) -> None:
    for name in entry.attributes:
        if not _ALLOWED.fullmatch(name):
            raise _refused(machine, entry.dn, f"sets {name}, which a restore never writes; remove these lines")
    if entry.has_class(ObjectClass.PROVISIONING) or entry.has_class(ObjectClass.LEAF):
        raise _refused(machine, entry.dn, "has the class of a leaf, which is never written back; remove the entry")
    if not entry.all("objectClass"):
        raise _refused(machine, entry.dn, "has no objectClass; take it from the saved LDIF")
    for name, value in rdn_values(entry.dn):
        if not same(name, [value], [held for held in entry.all(name) if same(name, [held], [value])]):
            raise _refused(machine, entry.dn, f"needs {name}: {value}, the value that names it; put it back")


def _refused(machine: str, dn: str, what: str) -> Refused:
    return Refused(ReturnValue.CANNOT_COPY_BACKEND_FILE, f"{machine}: the LDIF's entry {dn} {what}")
