"""What is asked before a backup is deleted, over real files: what must stay stays, and nothing else is touched."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import programs
from nodeagent.operations.deletion import delete
from nodeagent.operations.deletion_survey import refuse_if_in_use, survey_deletion
from nodeagent.order import Restoring
from tests.backup_root import PLACE, make_set
from tests.crafted_images import INCOMPATIBLE, patched
from tests.orders import host_at, order_in
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.machine import DirectoryDisk, Machine
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.memory import MemoryStore

OLD, NEW = "20260101T000000Z", "20260102T000000Z"
TREE = Tree("dc=example,dc=org")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A backup root with two good sets of vm; there is a retain root beside it."""
    (tmp_path / "retain").mkdir()
    for timestamp in (OLD, NEW):
        make_set(tmp_path / "backup", "vm", timestamp)
    return tmp_path / "backup"


def survey(root: Path, restored_elsewhere: Sequence[str] = (), floor: int = 1, **of_leaf: Any) -> Path | None:
    store = MemoryStore(TREE.machines)
    for timestamp in restored_elsewhere:
        store.add(TREE.machine("copy"), {"objectClass": (ObjectClass.MACHINE,), Attribute.MACHINE: ("copy",)})
        store.add(TREE.machine_plan("copy"), {"objectClass": (ObjectClass.BACKUP,)})
        modes = {Attribute.MODE: ("unretainedSmallFiles",), Attribute.STATE: ("0",)}
        classes = ("organizationalUnit", ObjectClass.PROVISIONING, ObjectClass.LEAF)
        store.add(TREE.leaf("copy", timestamp), {"objectClass": classes, Attribute.RESTORE_FROM: ("vm",), **modes})
    store.add(TREE.machine("vm"), {"objectClass": (ObjectClass.MACHINE,)})
    store.add(TREE.machine_plan("vm"), {"objectClass": (ObjectClass.BACKUP,)})
    if restored := of_leaf.pop("restoring", ""):
        modes = {Attribute.MODE: ("unretainedSmallFiles",), Attribute.STATE: ("0",)}
        store.add(TREE.leaf("vm", restored), {"objectClass": (ObjectClass.PROVISIONING, ObjectClass.LEAF), **modes})
    if (held := of_leaf.pop("held_meanwhile", None)) is not None:
        held_leaf = {
            "objectClass": (ObjectClass.PROVISIONING, ObjectClass.LEAF),
            Attribute.HOLD: (held,) if held else (),
        }
        store.add(TREE.leaf("vm", OLD), held_leaf)
    plan: Any = SimpleNamespace(backup_root=str(root), retain_root=str(root.parent / "retain"))
    leaf = Leaf(TREE.leaf("vm", OLD), "vm", OLD, "deleting", "0", **of_leaf)
    found = survey_deletion(Catalogue(store, TREE), host_at(root.parent), leaf, plan, floor)
    return None if found is None else Path(found)


def refused(
    root: Path, restored_elsewhere: Sequence[str] = (), floor: int = 1, **of_leaf: Any
) -> tuple[ReturnValue, str]:
    with pytest.raises(Refused) as raised:
        survey(root, restored_elsewhere, floor, **of_leaf)
    return raised.value.code, raised.value.sentence


def test_one_of_two_good_sets_may_go_wherever_it_is_found(root: Path) -> None:
    expected = root / PLACE / "vm" / OLD
    assert survey(root) == expected
    assert survey(root, set_directory=str(expected)) == expected


def test_the_only_good_set_goes_only_where_that_is_said(root: Path) -> None:
    newer = root / PLACE / "vm" / NEW
    (newer / f"manifest.json.{NEW}").unlink()
    (newer.parent / "20260103T000000Z").symlink_to(newer)
    (newer.parent / "20260104T000000Z").write_text("a note")
    code, sentence = refused(root)
    assert code is ReturnValue.WRONG_STATE_INFORMATION
    assert "its only good backup" in sentence
    assert survey(root, floor=0) == root / PLACE / "vm" / OLD


def test_no_fewer_good_sets_than_the_floor_are_left(root: Path) -> None:
    make_set(root, "vm", "20260103T000000Z")
    assert survey(root, floor=2) is not None
    code, sentence = refused(root, floor=3)
    assert code is ReturnValue.WRONG_STATE_INFORMATION
    assert "stays: without it there were 2 good ones, and the plan keeps 3 at the least" in sentence


def test_sets_of_another_storage_pool_count_as_well(root: Path) -> None:
    shutil.rmtree(root / PLACE / "vm" / NEW)
    refused(root)
    make_set(root, "vm", NEW, place="vm-persistent/pool-02")
    assert survey(root) == root / PLACE / "vm" / OLD


@pytest.mark.parametrize("is_named", [True, False])
def test_where_the_storage_is_not_mounted_no_leaf_of_a_good_backup_goes(root: Path, is_named: bool) -> None:
    shutil.rmtree(root)
    root.mkdir()
    named = {"set_directory": str(root / PLACE / "vm" / OLD)} if is_named else {}
    code, sentence = refused(root, manifest_digest="blake3:0", **named)
    assert code is ReturnValue.WRONG_STATE_INFORMATION
    assert "is the storage mounted?" in sentence
    assert survey(root, floor=0, manifest_digest="blake3:0") is None
    assert survey(root) is None, "one that came to no set may go"


def test_the_plan_never_lets_the_newest_good_set_go_whatever_the_leaves_say(root: Path) -> None:
    older = "20251231T000000Z"
    make_set(root, "vm", older)
    shutil.rmtree(root / PLACE / "vm" / NEW)
    assert survey(root) is not None, "somebody who asks by hand may"
    _, sentence = refused(root, pruned="good, and no rule keeps it", manifest_digest="blake3:0")
    assert "is its newest good backup" in sentence


def test_what_is_held_stays_also_where_that_was_said_only_after_the_deletion_was_asked_for(root: Path) -> None:
    code, sentence = refused(root, held_meanwhile="20990101T000000Z the audit")
    assert code is ReturnValue.CANNOT_LOCK_MACHINE
    said = (
        f"vm: the backup {OLD} is held until 20990101T000000Z: the audit; take that back first: vmkeep release vm {OLD}"
    )
    assert sentence == said
    refused(root, floor=0, held_meanwhile="forever")
    assert survey(root, held_meanwhile="20260101T000000Z the audit") is not None, "it has run out"
    assert survey(root, hold="forever", held_meanwhile="") is not None, "it was taken back"


def test_the_plan_lets_nothing_go_while_a_restore_that_began_meanwhile_lasts(root: Path) -> None:
    make_set(root, "vm", "20251231T000000Z")
    _, sentence = refused(root, pruned="no rule keeps it", restoring=NEW)
    assert sentence == f"vm: a restore is under way ({NEW} is at unretainedSmallFiles); old backups stay"
    assert survey(root, restoring=NEW) is not None, "somebody who asks by hand may"


def test_a_set_that_another_machine_is_made_from_stays(root: Path) -> None:
    code, sentence = refused(root, [OLD])
    assert code is ReturnValue.CANNOT_LOCK_MACHINE
    assert sentence == f"vm: the backup {OLD} is being restored as copy; delete it afterwards"
    assert survey(root, [NEW]) is not None


@pytest.mark.parametrize(
    "directory",
    [
        "/etc",
        "relative/a/b/vm-persistent/p/vm/" + OLD,
        f"/a/vm-persistent/p/vm/{NEW}",
        f"/a/../vm-persistent/p/vm/{OLD}",
    ],
)
def test_nothing_is_removed_but_where_a_set_of_this_backup_lies(directory: str, root: Path) -> None:
    code, sentence = refused(root, set_directory=directory)
    assert code is ReturnValue.PATH_NOT_ALLOWED
    assert "correct it, or remove the files by hand" in sentence


def test_a_backup_at_two_places_is_not_chosen_from(root: Path) -> None:
    make_set(root, "vm", OLD, place="vm-persistent/pool-02")
    code, sentence = refused(root)
    assert code is ReturnValue.WRONG_STATE_INFORMATION
    assert "lies at several places" in sentence


def test_a_backup_that_came_to_no_set_is_looked_for_in_retain_and_may_have_left_nothing(root: Path) -> None:
    for file in (root / PLACE / "vm" / OLD).iterdir():
        file.unlink()
    (root / PLACE / "vm" / OLD).rmdir()
    assert survey(root) is None
    order = order_in(root.parent, Mode.DELETING, timestamp=OLD, restoring=Restoring(set_directory=""))
    assert [step.apply({}) for step in delete(order, host_at(root.parent))] == [{}, {}]
    (root.parent / "retain" / PLACE / "vm" / OLD).mkdir(parents=True)
    assert survey(root) == root / PLACE / "vm" / OLD


def test_an_image_that_lies_over_what_would_be_removed_keeps_it(root: Path) -> None:
    folder = root.parent
    (folder / "images").mkdir()
    order = order_in(folder, Mode.DELETING, timestamp=OLD)
    kept = Path(order.paths.retain) / "d.qcow2"
    kept.parent.mkdir(parents=True)
    programs.run(["qemu-img", "create", "-q", "-f", "qcow2", kept, "1M"])

    def machine(*names: str) -> Machine:
        disks = [DirectoryDisk(target=name, source=str(folder / "images" / name)) for name in names]
        disks += [DirectoryDisk(target="hda", source=None), DirectoryDisk(target="sda", source="/iso", device="cdrom")]
        found: Any = SimpleNamespace(disks=disks)
        return found  # type: ignore[no-any-return]

    host = host_at(folder)
    (folder / "images" / "raw").write_bytes(b"no image of ours")
    programs.run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "images" / "whole", "1M"])
    refuse_if_in_use(order, machine("missing", "raw", "whole"), host)
    host.images.create_overlay(folder / "images" / "live", kept, 1 << 20)
    with pytest.raises(Refused, match=f"live still lies over {kept} of this backup") as raised:
        refuse_if_in_use(order, machine("raw", "live"), host)
    assert raised.value.code is ReturnValue.UNMERGED_IMAGE
    image = folder / "images" / "live"
    image.write_bytes(patched(image.read_bytes(), INCOMPATIBLE, "Q", 2))
    with pytest.raises(Refused, match=r"cannot be told: .* is marked corrupt") as raised:
        refuse_if_in_use(order, machine("live"), host)
    assert raised.value.code is ReturnValue.UNMERGED_IMAGE
