"""Bringing a machine's entries in line with a saved LDIF, and putting back what was; on the store in memory."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.names import Tree
from vmkeep.directory.alignment import Change, ChangeKind, align, changes, read_before, read_saved
from vmkeep.directory.ldif_text import to_ldif
from vmkeep.directory.memory import MemoryStore
from vmkeep.directory.port import Entry

TREE = Tree("dc=example,dc=org")
OWN = TREE.machine("m")
PLAN = TREE.machine_plan("m")
LEAF = TREE.leaf("m", "20260101T000000Z")
DEVICES = f"ou=devices,{OWN}"


def machine(**attributes: tuple[str, ...]) -> Entry:
    known = {"objectClass": ("top", "sstVirtualizationVirtualMachine"), "sstVirtualMachine": ("m",)}
    return Entry(OWN, {**known, "sstNode": ("n1",), **attributes})


def unit(dn: str, **attributes: tuple[str, ...]) -> Entry:
    name = dn.split(",", 1)[0].split("=", 1)[1]
    return Entry(dn, {"objectClass": ("top", "organizationalUnit"), "ou": (name,), **attributes})


def disk(target: str, path: str = "/images/a.qcow2") -> Entry:
    classes = ("top", "sstVirtualizationVirtualMachineDisk")
    return Entry(
        f"sstDisk={target},{DEVICES}",
        {"objectClass": classes, "sstDisk": (target,), "sstSourceFile": (path,), "sstDevice": ("disk",)},
    )


# subtrees as they may lie there: a machine, its plan and a leaf, perhaps devices with disks and other entries

_paths = st.sampled_from(["/images/a.qcow2", "/images/A.qcow2", "/images/b.qcow2"])
_values = st.lists(st.sampled_from(["a", "A", "b", "1"]), min_size=1, max_size=3, unique_by=str.lower).map(tuple)
_more = st.dictionaries(st.sampled_from(["sstDisplayName", "sstMemory", "description", "cn"]), _values, max_size=3)
_foreign = st.dictionaries(st.just("userPassword"), st.just(("secret",)), max_size=1)
_disks = st.dictionaries(st.sampled_from(["vda", "vdb", "vdc"]), _paths, max_size=3)
_others = st.dictionaries(st.sampled_from([f"ou=net,{OWN}", f"ou=card,ou=net,{OWN}", f"ou=x,{DEVICES}"]), _more)


@st.composite
def subtrees(draw: st.DrawFn, with_foreign: bool) -> list[Entry]:
    foreign = draw(_foreign) if with_foreign else {}
    node = draw(st.sampled_from(["n1", "N1", "n2"]))
    entries = [machine(sstNode=(node,), **draw(_more), **foreign)]
    if draw(st.booleans()):
        entries.append(unit(DEVICES, **draw(st.just({}))))
        entries += [disk(target, path) for target, path in draw(_disks).items()]
    for dn, attributes in sorted(draw(_others).items(), key=lambda item: item[0].count(",")):
        if dn.split(",", 1)[1] in {entry.dn for entry in entries}:
            entries.append(unit(dn, **attributes))
    return entries


def loaded(entries: Sequence[Entry]) -> MemoryStore:
    """A store with these entries of m, its plan and a leaf, and a machine beside it."""
    store = MemoryStore(TREE.suffix)
    for dn in (f"ou=services,{TREE.suffix}", TREE.top, TREE.machines, TREE.machine("other")):
        assert store.add(dn, {"objectClass": ("top",)})
    plan = [unit(PLAN, sstBackupNumberOfIterations=("3",)), unit(LEAF, sstProvisioningMode=("finished",))]
    for entry in [*entries, *(plan if entries else [])]:
        assert store.add(entry.dn, entry.attributes)
    return store


def of_machine(store: MemoryStore) -> list[Entry]:
    return list(store.search(OWN))


def everything(entries: Sequence[Entry]) -> dict[str, dict[str, list[str]]]:
    return {
        entry.dn.lower(): {name.lower(): sorted(values) for name, values in entry.attributes.items()}
        for entry in entries
    }


def history(store: MemoryStore) -> dict[str, dict[str, list[str]]]:
    rest = [*store.search(PLAN), *store.search(TREE.machine("other"))]
    return everything([*rest, *(entry for entry in store.search(TREE.suffix) if OWN not in entry.dn)])


@given(subtrees(with_foreign=False), subtrees(with_foreign=True))
def test_once_in_line_nothing_differs_and_nothing_else_was_touched(saved: list[Entry], live: list[Entry]) -> None:
    store = loaded(live)
    before = history(store)
    node = store.read(OWN)
    align(store, changes(saved, of_machine(store), "m", TREE))
    assert changes(saved, of_machine(store), "m", TREE) == ()
    assert history(store) == before
    after = store.read(OWN)
    assert (
        node
        and after
        and (after.all("sstNode"), after.all("userPassword"))
        == (
            node.all("sstNode"),
            node.all("userPassword"),
        )
    )
    assert {entry.dn for entry in saved} <= {entry.dn for entry in of_machine(store)}


@given(subtrees(with_foreign=False), subtrees(with_foreign=True))
def test_in_line_twice_is_in_line_once(saved: list[Entry], live: list[Entry]) -> None:
    store = loaded(live)
    wanted = changes(saved, of_machine(store), "m", TREE)
    align(store, wanted)
    once = everything(of_machine(store))
    align(store, wanted)
    assert everything(of_machine(store)) == once


@given(subtrees(with_foreign=False), subtrees(with_foreign=True))
def test_putting_back_brings_the_very_same_subtree(saved: list[Entry], live: list[Entry]) -> None:
    store = loaded(live)
    before = of_machine(store)
    kept = read_before(to_ldif(entry for entry in before if entry.dn != LEAF), "m", TREE)
    align(store, changes(saved, before, "m", TREE))
    align(store, changes(kept, of_machine(store), "m", TREE, exactly=True))
    assert everything(of_machine(store)) == everything(before)


def test_a_machine_that_is_gone_is_added_parents_first() -> None:
    saved = [disk("vda"), unit(DEVICES), machine(), unit(PLAN)]
    wanted = changes(saved, [], "m", TREE)
    assert {change.kind for change in wanted} == {ChangeKind.ADD}
    store = loaded([])
    align(store, wanted)
    assert everything(of_machine(store)) == everything(saved)


def test_a_disk_the_set_does_not_know_loses_its_entry_last() -> None:
    live = [machine(), unit(DEVICES), disk("vda"), disk("vdb"), unit(f"ou=note,{DEVICES}")]
    wanted = changes([machine(sstMemory=("1",)), unit(DEVICES), disk("vda")], live, "m", TREE)
    assert [(change.kind, change.dn) for change in wanted] == [
        (ChangeKind.MODIFY, OWN),
        (ChangeKind.REMOVE, f"sstDisk=vdb,{DEVICES}"),
    ]


def test_a_disk_entry_with_something_below_stays_with_it() -> None:
    below = f"ou=note,sstDisk=vda,{DEVICES}"
    assert changes([machine()], [machine(), unit(DEVICES), disk("vda"), unit(below)], "m", TREE) == ()


def test_a_change_names_what_is_written_and_what_stood_there() -> None:
    saved = [machine(sstMemory=("2",), sstDisplayName=("A", "b"))]
    live = [machine(sstMemory=("1",), sstDisplayName=("B", "a"), description=("x",), userPassword=("y",))]
    assert changes(saved, live, "m", TREE) == (
        Change(
            OWN,
            ChangeKind.MODIFY,
            {"sstMemory": ("2",), "description": ()},
            {"sstMemory": ("1",), "description": ("x",)},
        ),
    )


def test_the_case_of_a_path_matters() -> None:
    saved, live = ([machine(), unit(DEVICES), disk("vda", path)] for path in ("/images/A", "/images/a"))
    assert [change.attributes for change in changes(saved, live, "m", TREE)] == [{"sstSourceFile": ("/images/A",)}]


def test_the_live_node_and_the_live_plan_stand() -> None:
    saved = [machine(sstNode=("n2",)), unit(PLAN, sstBackupNumberOfIterations=("9",))]
    assert changes(saved, [machine(), unit(PLAN)], "m", TREE) == ()


def test_another_spelling_of_a_name_is_the_same_entry() -> None:
    saved = [Entry(OWN.upper().replace(",", ", "), machine().attributes)]
    assert changes(saved, [machine()], "m", TREE) == ()


def test_putting_back_minds_the_case_that_bringing_in_line_does_not() -> None:
    before, live = [machine(sstDisplayName=("Mail",))], [machine(sstDisplayName=("MAIL",))]
    assert changes(before, live, "m", TREE) == ()
    assert [change.attributes for change in changes(before, live, "m", TREE, exactly=True)] == [
        {"sstDisplayName": ("Mail",)}
    ]


def test_a_machine_added_meanwhile_keeps_its_node() -> None:
    store = loaded([machine()])
    align(store, [Change(OWN, ChangeKind.ADD, machine(sstNode=("n2",), sstMemory=("1",)).attributes)])
    own = store.read(OWN)
    assert own and (own.first("sstNode"), own.first("sstMemory")) == ("n1", "1")


def test_an_entry_that_goes_away_meanwhile_is_looked_at_again() -> None:
    with pytest.raises(TryLater, match="went away"):
        align(loaded([]), [Change(OWN, ChangeKind.MODIFY, {"sstMemory": ("1",)})])


def test_a_plan_made_meanwhile_is_not_overwritten() -> None:
    store = loaded([machine()])
    align(store, [Change(PLAN, ChangeKind.ADD, unit(PLAN, sstBackupNumberOfIterations=("9",)).attributes)])
    plan = store.read(PLAN)
    assert plan and plan.first("sstBackupNumberOfIterations") == "3"


# what an LDIF may hold


def test_a_saved_subtree_reads_back() -> None:
    saved = (machine(), unit(DEVICES), disk("vda"), unit(PLAN))
    assert read_saved(to_ldif(saved), "m", TREE) == saved


@pytest.mark.parametrize(
    "entry",
    [
        Entry(TREE.machine("other"), {"objectClass": ("top",), "sstVirtualMachine": ("other",)}),
        Entry(TREE.cluster_plan, {"objectClass": ("top",), "ou": ("backup",)}),
        Entry(TREE.machine("x") + "," + OWN.split(",", 1)[1], {"objectClass": ("top",), "sstVirtualMachine": ("x",)}),
        Entry(f"sstVirtualMachine=m\\,{TREE.machines}", {"objectClass": ("top",), "sstVirtualMachine": ("m",)}),
        Entry(TREE.machines, {"objectClass": ("top",), "ou": ("virtual machines",)}),
        unit(LEAF),
        Entry(LEAF.replace("ou=backup", "OU=\\62ackup"), {"objectClass": ("top",), "ou": ("20260101T000000Z",)}),
        unit(f"organizationalUnitName=backup,{OWN}"),
        Entry(f"ou=back\u00adup,{OWN}", {"objectClass": ("top",), "ou": ("back\u00adup",)}),
        Entry(f"ou=back\u034fup,{OWN}", {"objectClass": ("top",), "ou": ("back\u034fup",)}),
        unit(f"uid=x,{OWN}"),
        unit(f"ou=x,{OWN}", userPassword=("secret",)),
        unit(f"ou=x,{OWN}", vmkeepConflicts=("x",)),
        unit(f"ou=x,{OWN}", entryUUID=("x",)),
        unit(f"ou=x,{OWN}", olcAccess=("x",)),
        unit(f"ou=x,{OWN}", **{"sstNode;lang-de": ("x",)}),
        unit(f"ou=x,{OWN}", objectClass=("organizationalUnit", "SSTProvisioning")),
        Entry(f"ou=x,{OWN}", {"objectClass": ("organizationalUnit",), "ou": ("y",)}),
        Entry(f"ou=x,{OWN}", {"ou": ("x",)}),
        machine(),
    ],
    ids=lambda entry: entry.dn.split(",ou=virtual")[0] + " " + list(entry.attributes)[-1],
)
def test_an_entry_that_is_not_the_machines_own_is_refused_by_name(entry: Entry) -> None:
    with pytest.raises(Refused, match=r"^m: the LDIF") as refusal:
        read_saved(to_ldif([machine(), entry]), "m", TREE)
    assert entry.dn in refusal.value.sentence or "no name of an entry" in refusal.value.sentence


def test_an_ldif_without_the_machine_is_refused() -> None:
    with pytest.raises(Refused, match="missing"):
        read_saved(to_ldif([unit(DEVICES)]), "m", TREE)


def test_a_machine_whose_name_needs_escapes_is_found_in_every_spelling() -> None:
    own = Tree("dc=example,dc=org").machine("a,b")
    text = to_ldif([Entry(own.replace("\\,", "\\2C"), {"objectClass": ("top",), "sstVirtualMachine": ("a,b",)})])
    assert len(read_saved(text, "a,b", TREE)) == 1
    with pytest.raises(Refused):
        read_saved(text, "b", TREE)
