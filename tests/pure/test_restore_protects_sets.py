"""A set that a restore uses under another name stays: no deletion takes it.

The only good one stays too, unless the leaf says otherwise.
"""

from pathlib import Path
from typing import Any

import pytest

from nodeagent.host.images import Images
from nodeagent.operations.survey import Rules, Surveyor
from nodeagent.steps import Host
from nodeagent.unretained import Unretained
from tests.pure.restored_machine import PLACES
from vmkeep.contract.errors import Refused
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.memory import MemoryStore

TREE = Tree("dc=example,dc=org")
OLD, NEW = "20260101T000000Z", "20260102T000000Z"


@pytest.fixture
def surveyor(tmp_path: Path) -> Surveyor:
    """A node with machine vm, of which OLD is finished, and with the machine copy."""
    store = MemoryStore(TREE.machines)
    for name in ("vm", "copy"):
        machine = {"objectClass": (ObjectClass.MACHINE,), Attribute.MACHINE: (name,), Attribute.NODE: ("n1",)}
        roots = {Attribute.BACKUP_ROOT: (f"file://{tmp_path}",), Attribute.RETAIN_ROOT: (f"file://{tmp_path}",)}
        store.add(TREE.machine(name), machine)
        store.add(TREE.machine_plan(name), {"objectClass": (ObjectClass.BACKUP,), **roots})
    disk = {Attribute.DISK: ("vda",), Attribute.SOURCE_FILE: (f"{tmp_path}/vm-persistent/p/vda.qcow2",)}
    store.add(f"sstDisk=vda,{TREE.machine('vm')}", {"objectClass": (ObjectClass.DISK,), **disk})
    catalogue = Catalogue(store, TREE)
    hypervisor: Any = None
    host = Host("n1", hypervisor, Images(), (str(tmp_path),), {}, Unretained(tmp_path / "notes"))
    rules = Rules((str(tmp_path),), (str(tmp_path),), (), str(tmp_path), PLACES)
    surveyor = Surveyor(catalogue, host, rules)
    add_leaf(surveyor, "vm", OLD, "finished")
    return surveyor


def add_leaf(surveyor: Surveyor, machine: str, timestamp: str, mode: str, original: str = "") -> None:
    modes = {Attribute.MODE: (mode,), Attribute.STATE: ("0",), Attribute.EXECUTION_DATE: ("0",)}
    wish = {Attribute.RESTORE_FROM: (original,)} if original else {}
    classes = ("organizationalUnit", ObjectClass.PROVISIONING, ObjectClass.LEAF)
    store = surveyor.catalogue.store
    store.add(TREE.leaf(machine, timestamp), {"objectClass": classes, "ou": (timestamp,), **modes, **wish})


def delete(surveyor: Surveyor) -> None:
    leaf = surveyor.catalogue.leaf(TREE.leaf("vm", OLD))
    assert leaf is not None
    surveyor.survey(leaf, Mode.DELETING)


@pytest.mark.parametrize("mode", ["unretainSmallFiles", "unretainingLargeFiles", "restoring", "restored"])
def test_a_set_that_is_restored_under_another_name_is_not_deleted(mode: str, surveyor: Surveyor) -> None:
    add_leaf(surveyor, "copy", OLD, mode, original="vm")
    with pytest.raises(Refused, match=f"the backup {OLD} is being restored as copy") as refused:
        delete(surveyor)
    assert refused.value.code == 22


@pytest.mark.parametrize(("mode", "original"), [("finished", "vm"), ("unretainingLargeFiles", "another")])
def test_a_set_that_no_restore_uses_may_go(mode: str, original: str, surveyor: Surveyor) -> None:
    add_leaf(surveyor, "copy", OLD, mode, original)
    delete(surveyor)


def sets(tmp_path: Path, *timestamps: str) -> None:
    """Complete sets of the machine; OLD lies there, a failed one, without a manifest."""
    for timestamp in (OLD, *timestamps):
        folder = tmp_path / "vm-persistent/p/vm" / timestamp
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"vda.qcow2.{timestamp}").write_bytes(b"x")
        if timestamp in timestamps:
            (folder / f"manifest.json.{timestamp}").write_bytes(b"{}")


def test_the_only_good_set_is_not_deleted(surveyor: Surveyor, tmp_path: Path) -> None:
    sets(tmp_path, OLD)
    with pytest.raises(Refused, match="its only good backup") as refused:
        delete(surveyor)
    assert refused.value.code == 18


@pytest.mark.parametrize("good", [(OLD, NEW), (NEW,), ()], ids=["another is good", "it is not good itself", "none is"])
def test_a_set_that_is_not_the_only_good_one_may_go(good: tuple[str, ...], surveyor: Surveyor, tmp_path: Path) -> None:
    sets(tmp_path, *good)
    delete(surveyor)


def test_the_only_good_set_goes_where_the_leaf_says_so(surveyor: Surveyor, tmp_path: Path) -> None:
    sets(tmp_path, OLD)
    surveyor.catalogue.store.replace(TREE.leaf("vm", OLD), {Attribute.DELETE_LAST: ("TRUE",)})
    delete(surveyor)


def test_where_the_plan_says_not_what_to_keep_nothing_is_deleted_but_what_may_be_the_last(
    surveyor: Surveyor, tmp_path: Path
) -> None:
    sets(tmp_path, OLD, NEW)
    store = surveyor.catalogue.store
    store.replace(TREE.machine_plan("vm"), {"objectClass": (ObjectClass.PLAN,), Attribute.KEEP: ("last=few",)})
    with pytest.raises(Refused, match="vm: vmkeepKeep is 'last=few'") as refused:
        delete(surveyor)
    assert refused.value.code == 105
    store.replace(TREE.leaf("vm", OLD), {Attribute.DELETE_LAST: ("TRUE",)})
    delete(surveyor)


def test_the_floor_is_that_of_the_plan(surveyor: Surveyor, tmp_path: Path) -> None:
    sets(tmp_path, OLD, NEW)
    store = surveyor.catalogue.store
    store.replace(TREE.machine_plan("vm"), {"objectClass": (ObjectClass.PLAN,), Attribute.KEEP: ("last=9 floor=2",)})
    with pytest.raises(Refused, match="without it there were 1 good ones, and the plan keeps 2 at the least"):
        delete(surveyor)
