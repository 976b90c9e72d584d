"""A machine's entry brought in line and put back over the directory's twin in memory, killed at every call, twice."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import TypeVar

import pytest
import structlog

from controller.cycle import Cycle
from controller.decide import Bounds
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.names import Attribute, Tree
from vmkeep.directory.alignment import read_before
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.equality import normal_dn
from vmkeep.directory.ldif_text import to_ldif
from vmkeep.directory.memory import MemoryStore
from vmkeep.directory.port import ANYTHING, Attributes, Claim, Entry, Filter, Scope, Store, Watcher

BOUNDS = Bounds(timedelta(seconds=600), timedelta(seconds=300), 3, timedelta(seconds=60))
NOW = datetime(2026, 1, 2, tzinfo=UTC)
TREE = Tree("dc=example,dc=org")
WEB = TREE.machine("web")
DEVICES = f"ou=devices,{WEB}"
LEAF = TREE.leaf("web", "20260101T000000Z")
OTHER_LEAF = TREE.leaf("web", "20251231T000000Z")
T = TypeVar("T")
Shape = dict[str, dict[str, list[str]]]


class Killed(BaseException):
    """The process ends here."""


class MortalStore:
    """A Store that ends the process before its n-th call, which is after the one before; None: never."""

    def __init__(self, store: Store, at: int | None = None) -> None:
        self.calls = 0
        self.refuse: Callable[[str], bool] = lambda _dn: False
        self._store = store
        self._at = at

    def _called(self, what: Callable[[], T]) -> T:
        self.calls += 1
        if self.calls == self._at:
            raise Killed
        return what()

    def _written(self, dn: str, what: Callable[[], T]) -> T:
        if self.refuse(dn):
            raise Refused(ReturnValue.CANNOT_CONNECT_TO_BACKEND, f"{dn}: may not be written")
        return self._called(what)

    def read(self, dn: str, attributes: Sequence[str] = ()) -> Entry | None:
        return self._called(lambda: self._store.read(dn, attributes))

    def search(
        self, base: str, matching: Filter = ANYTHING, scope: Scope = Scope.SUBTREE, attributes: Sequence[str] = ()
    ) -> Iterator[Entry]:
        return self._called(lambda: self._store.search(base, matching, scope, attributes))

    def add(self, dn: str, attributes: Attributes) -> bool:
        return self._written(dn, lambda: self._store.add(dn, attributes))

    def claim(
        self,
        dn: str,
        expected: Mapping[str, str],
        changes: Attributes,
        additions: Attributes | None = None,
        provided: Filter = ANYTHING,
    ) -> Claim:
        return self._written(dn, lambda: self._store.claim(dn, expected, changes, additions, provided))

    def replace(self, dn: str, changes: Attributes) -> bool:
        return self._written(dn, lambda: self._store.replace(dn, changes))

    def delete(self, dn: str, provided: Filter = ANYTHING) -> bool:
        return self._written(dn, lambda: self._store.delete(dn, provided))

    def watch(self, base: str, matching: Filter, wake: Callable[[], None], *, polls: bool = True) -> Watcher:
        return self._store.watch(base, matching, wake, polls=polls)

    def close(self) -> None:
        self._store.close()


def _disk(target: str, path: str, **more: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    attributes = {"objectClass": ("sstVirtualizationVirtualMachineDisk",), "sstDisk": (target,)}
    attributes |= {"sstSourceFile": (path,), **{name: (value,) for name, value in more.items()}}
    return f"sstDisk={target},{DEVICES}", attributes


def _machine(name: str, **more: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    attributes = {"objectClass": ("sstVirtualizationVirtualMachine",), "sstVirtualMachine": (name,)}
    return TREE.machine(name), attributes | {key: (value,) for key, value in more.items()}


def _unit(dn: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    return dn, {"objectClass": ("organizationalUnit",), "ou": (dn.partition(",")[0].partition("=")[2],)}


SAVED = (
    _machine("web", sstNode="n0", sstMemory="512", sstDisplayName="as it was"),
    _unit(DEVICES),
    _disk("vda", "/var/virtualization/old/vda.qcow2"),
    _disk("vdb", "/var/virtualization/old/vdb.qcow2"),
    _unit(f"ou=gone,{WEB}"),
)
LIVE = (
    _machine("web", sstNode="n1", sstMemory="1024", sstVCPU="2"),
    _unit(DEVICES),
    _disk("vda", "/var/virtualization/new/vda.qcow2", sstTargetBus="virtio"),
    _disk("vdc", "/var/virtualization/new/vdc.qcow2"),
    _unit(f"ou=notes,{WEB}"),
)
WANTED = (
    _machine("web", sstNode="n1", sstMemory="512", sstDisplayName="as it was"),
    *SAVED[1:],
    LIVE[4],
)


def _leaf(dn: str, mode: str, **more: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    name, attributes = _unit(dn)
    attributes["objectClass"] = ("organizationalUnit", "sstProvisioning", "vmkeepLeaf")
    attributes |= {Attribute.MODE: (mode,), Attribute.STATE: ("20260101T000500Z",), Attribute.EXECUTION_DATE: ("0",)}
    return name, attributes | {Attribute.RETURN_VALUE: ("0",)} | {key: (value,) for key, value in more.items()}


def directory(entries: Sequence[tuple[str, dict[str, tuple[str, ...]]]], mode: str, **more: str) -> MemoryStore:
    """A machine with these entries and a leaf of a restore in this mode; a plan, an older leaf, and another machine."""
    store = MemoryStore(TREE.suffix)
    for dn in (f"ou=services,{TREE.suffix}", TREE.top, TREE.machines):
        store.add(*_unit(dn))
    for entry in (*entries, _machine("db", sstNode="n1"), _unit(TREE.machine_plan("web"))):
        store.add(*entry)
    store.replace(TREE.machine_plan("web"), {"sstBackupNumberOfIterations": ("3",)})
    store.add(*_leaf(OTHER_LEAF, "finished"))
    store.add(*_leaf(LEAF, mode, **{Attribute.CONFLICTS: "[]", **more}))
    return store


def text(entries: Sequence[tuple[str, dict[str, tuple[str, ...]]]]) -> str:
    return to_ldif(Entry(dn, attributes) for dn, attributes in entries)


def shape(store: Store, *, of_machine: bool) -> Shape:
    """Entries of the machine, or all others; but for the leaf itself."""
    plan, own, leaf = normal_dn(TREE.machine_plan("web")), normal_dn(WEB), normal_dn(LEAF)
    found = {}
    for entry in store.search(TREE.suffix):
        dn = normal_dn(entry.dn)
        belongs = dn[-len(own) :] == own and dn[-len(plan) :] != plan
        if dn != leaf and belongs is of_machine:
            found[entry.dn] = {name: sorted(values) for name, values in sorted(entry.attributes.items())}
    return found


def leaf_in(store: Store) -> Leaf:
    leaf = Catalogue(store, TREE).leaf(LEAF)
    assert leaf is not None
    return leaf


def turn(store: Store) -> None:
    Cycle(Catalogue(store, TREE), BOUNDS, structlog.get_logger(), clock=lambda: NOW).turn()


def calls_of_a_turn(make: Callable[[], MemoryStore]) -> int:
    store = MortalStore(make())
    turn(store)
    return store.calls


def killed_twice(make: Callable[[], MemoryStore], check: Callable[[Store], None]) -> Iterator[MemoryStore]:
    """The directory after two turns killed at every pair of calls, and a whole one; checked after each death."""
    calls = range(1, calls_of_a_turn(make) + 2)  # the last is no death
    for first, second in product(calls, calls):
        store = make()
        for at in (first, second):
            try:
                turn(MortalStore(store, at))
            except Killed:
                check(store)
        turn(store)
        yield store


def never_changed_without_a_copy(store: Store) -> None:
    leaf, original = leaf_in(store), shape(directory(LIVE, "finished"), of_machine=True)
    if shape(store, of_machine=True) != original:
        assert {entry.dn for entry in read_before(leaf.entry_before, "web", TREE)} == original.keys()


def test_an_entry_is_brought_in_line_and_the_restore_asked_for_wherever_the_controller_is_killed() -> None:
    def make() -> MemoryStore:
        return directory(LIVE, "unretainedLargeFiles", vmkeepEntry=text(SAVED))

    wanted, others = shape(directory(WANTED, "x"), of_machine=True), shape(make(), of_machine=False)
    for store in killed_twice(make, never_changed_without_a_copy):
        leaf = leaf_in(store)
        assert (leaf.raw_mode, leaf.state, leaf.return_value) == ("restore", "0", 0)
        assert leaf.entry_before == text(sorted(LIVE, key=lambda each: (each[0].count(","), each[0])))
        assert shape(store, of_machine=True) == wanted
        assert shape(store, of_machine=False) == others


@pytest.mark.parametrize(("mode", "code"), [("restoring", "21"), ("finished", "0"), ("unretainingLargeFiles", "38")])
def test_an_entry_is_put_back_to_the_letter_wherever_the_controller_is_killed(mode: str, code: str) -> None:
    def make() -> MemoryStore:
        kept = {"vmkeepEntry": text(SAVED), "vmkeepEntryBefore": text(LIVE), "vmkeepMessage": "why"}
        return directory(WANTED, mode, sstProvisioningReturnValue=code, **kept)

    original, others = shape(directory(LIVE, "x"), of_machine=True), shape(make(), of_machine=False)
    for store in killed_twice(make, never_changed_without_a_copy):
        leaf = leaf_in(store)
        assert (leaf.raw_mode, leaf.state, leaf.return_value) == (mode, "20260101T000500Z", int(code))
        assert (leaf.entry, leaf.entry_before, leaf.message) == ("", "", "" if leaf.is_good_backup else "why")
        assert bool(leaf.conflicts) is (mode != "finished")
        assert shape(store, of_machine=True) == original
        assert shape(store, of_machine=False) == others


def test_values_of_every_alphabet_are_put_back_to_the_letter() -> None:
    odd = _machine("web", sstNode="n1", sstDisplayName="Zürich  日本", description=" two\nlines\t")
    kept = {"vmkeepEntry": text(SAVED), "vmkeepEntryBefore": text((odd, *LIVE[1:]))}
    store = directory(WANTED, "restoring", sstProvisioningReturnValue="21", **kept)

    turn(store)

    assert shape(store, of_machine=True) == shape(directory((odd, *LIVE[1:]), "x"), of_machine=True)


def test_an_entry_that_could_not_be_put_back_is_not_changed() -> None:
    binary = _machine("web", sstNode="n1", jpegPhoto="\udcff\udc80")
    store = directory((binary, *LIVE[1:]), "unretainedLargeFiles", vmkeepEntry=text(SAVED))
    before = shape(store, of_machine=True)

    turn(store)

    assert (leaf_in(store).raw_mode, leaf_in(store).return_value) == ("unretainedLargeFiles", 29)
    assert "is not UTF-8" in leaf_in(store).message
    assert shape(store, of_machine=True) == before


BAD_ENTRY = text((*SAVED, _machine("db", sstNode="n1")))
PASSWORD = text((*SAVED[:3], _disk("vdb", "/x", userPassword="secret")))


@pytest.mark.parametrize("entry", [BAD_ENTRY, PASSWORD, "no LDIF"], ids=["outside", "password", "nonsense"])
def test_an_entry_that_may_not_be_written_ends_in_29_and_nothing_is_changed(entry: str) -> None:
    store = directory(LIVE, "unretainedLargeFiles", vmkeepEntry=entry)
    before = shape(store, of_machine=True)

    turn(store)

    leaf = leaf_in(store)
    assert (leaf.raw_mode, leaf.return_value, leaf.state) == ("unretainedLargeFiles", 29, "20260102T000000Z")
    assert leaf.is_failed
    assert leaf.message.startswith("web: ")
    assert "set unretainLargeFiles again" in leaf.message
    assert leaf.entry_before == ""
    assert shape(store, of_machine=True) == before


OF_DB = f"sstDisk=vdx,ou=devices,{TREE.machine('db')}"


@pytest.mark.parametrize(
    ("ours", "theirs", "code"),
    [
        ({}, "/var/virtualization/old/vdb.qcow2", 103),
        ({}, "/var/virtualization/OLD/vdb.qcow2", 0),
        ({}, "/var/virtualization/old/vdb.qcow2.other", 0),
        ({"sstDevice": "cdrom"}, "/var/virtualization/old/vdb.qcow2", 0),
        ({"sstReadonly": "TRUE"}, "/var/virtualization/old/vdb.qcow2", 0),
    ],
    ids=["the same", "in other letters", "longer", "our CD-ROM", "read only"],
)
def test_a_machine_does_not_get_an_image_that_another_machines_entry_names(
    ours: dict[str, str], theirs: str, code: int
) -> None:
    saved = (*SAVED[:3], _disk("vdb", "/var/virtualization/old/vdb.qcow2", **ours))
    store = directory(LIVE, "unretainedLargeFiles", vmkeepEntry=text(saved))
    before = shape(store, of_machine=True)
    store.add(*_unit(f"ou=devices,{TREE.machine('db')}"))
    store.add(OF_DB, _disk("vdx", theirs)[1])

    turn(store)

    leaf = leaf_in(store)
    assert (leaf.raw_mode, leaf.return_value) == ("unretainedLargeFiles" if code else "restore", code)
    if code:
        said = f"web: the image {theirs} of vdb belongs to db ({OF_DB}); give the disk another path"
        assert leaf.message.startswith(said)
        assert (leaf.entry_before, shape(store, of_machine=True)) == ("", before)


@pytest.mark.parametrize("refused", [dn for dn, _ in (*SAVED, LIVE[3]) if dn != DEVICES])
def test_where_the_directory_refuses_a_part_all_is_put_back_and_the_leaf_says_29(refused: str) -> None:
    inner = directory(LIVE, "unretainedLargeFiles", vmkeepEntry=text(SAVED))
    before = shape(inner, of_machine=True)
    store = MortalStore(inner)
    store.refuse = lambda dn: dn == refused

    turn(store)
    turn(store)

    leaf = leaf_in(store)
    assert (leaf.raw_mode, leaf.return_value, leaf.entry_before) == ("unretainedLargeFiles", 29, "")
    assert shape(inner, of_machine=True) == before


def test_where_even_putting_back_is_refused_the_leaf_says_so_and_keeps_the_copy_until_it_goes() -> None:
    inner = directory(LIVE, "unretainedLargeFiles", vmkeepEntry=text(SAVED))
    before = shape(inner, of_machine=True)
    store = MortalStore(inner)
    machine_was_written: list[str] = []

    def refuse(dn: str) -> bool:
        machine_was_written.extend([dn] if dn == WEB else [])
        return (len(machine_was_written) > 1 and dn == WEB) or dn == LIVE[3][0]

    store.refuse = refuse
    turn(store)

    leaf = leaf_in(store)
    assert (leaf.raw_mode, leaf.return_value) == ("unretainedLargeFiles", 29)
    assert "could not be put back from vmkeepEntryBefore" in leaf.message
    assert leaf.entry_before

    turn(inner)
    assert shape(inner, of_machine=True) == before
    assert leaf_in(inner).entry_before == ""


def test_putting_back_that_is_refused_is_told_once_until_somebody_writes_the_leaf() -> None:
    kept = {"vmkeepEntry": text(SAVED), "vmkeepEntryBefore": text(WANTED), "vmkeepSize": "7"}
    inner = directory(LIVE, "unretainedLargeFiles", **kept)
    store = MortalStore(inner)
    store.refuse = lambda dn: dn == WEB
    cycle = Cycle(Catalogue(store, TREE), BOUNDS, structlog.get_logger(), clock=lambda: NOW)

    with structlog.testing.capture_logs() as said:
        for _ in range(3):
            cycle.turn()

    assert leaf_in(inner).return_value == 29
    errors = [line["event"] for line in said if line["log_level"] == "error"]
    assert len(errors) == 1
    assert "is to be put back as it was before the restore: the directory refuses" in errors[0]


def test_a_leaf_that_somebody_moves_meanwhile_keeps_its_machine_as_it_is() -> None:
    inner = directory(LIVE, "unretainedLargeFiles", vmkeepEntry=text(SAVED))
    before = shape(inner, of_machine=True)

    class Overtaken(MortalStore):
        def read(self, dn: str, attributes: Sequence[str] = ()) -> Entry | None:
            inner.claim(LEAF, {}, {Attribute.MODE: ("finished",)})
            return super().read(dn, attributes)

    turn(Overtaken(inner))

    assert leaf_in(inner).raw_mode == "finished"
    assert shape(inner, of_machine=True) == before


@pytest.mark.parametrize("mode", ["deleted", "finished"])
def test_a_leaf_that_is_asked_for_anew_is_not_removed(mode: str) -> None:
    inner = directory(LIVE, mode, vmkeepRestoreFrom="db")

    class Overtaken(MortalStore):
        def delete(self, dn: str, provided: Filter = ANYTHING) -> bool:
            inner.claim(LEAF, {}, {Attribute.MODE: ("unretainSmallFiles",)})
            return super().delete(dn, provided)

    turn(Overtaken(inner))
    assert leaf_in(inner).raw_mode == "unretainSmallFiles", "at the last moment before the deletion"


@pytest.mark.parametrize("mode", ["deleted", "finished", "restored"])
def test_a_leaf_that_is_no_backup_of_its_machine_goes_and_the_others_stay(mode: str) -> None:
    inner = directory(LIVE, mode, vmkeepRestoreFrom="db")
    before = [shape(inner, of_machine=of_machine) for of_machine in (True, False)]

    turn(inner)

    assert inner.read(LEAF) is None
    assert [shape(inner, of_machine=of_machine) for of_machine in (True, False)] == before
