"""The first step of a restore, over a real set: both texts for a person, the machine's own or a new one's."""

from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.host.description import describe
from nodeagent.operations.unretain import unretain_small_files
from nodeagent.operations.unretain_survey import survey_small_files
from nodeagent.order import Order
from tests.pure.test_restore_surveys import LEAF, MACHINE, TREE, UUID, Restored
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Wishes
from vmkeep.contract.names import Attribute, ObjectClass
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.memory import MemoryStore

NEW = "copy"


@pytest.fixture
def restored(tmp_path: Path) -> Restored:
    restored = Restored(tmp_path)
    restored.make()
    for file in restored.retain.iterdir():
        file.unlink()
    return restored


@pytest.fixture
def catalogue() -> Catalogue:
    store = MemoryStore(TREE.machines)
    for name in (MACHINE, NEW):
        store.add(TREE.machine(name), {"objectClass": (ObjectClass.MACHINE,), Attribute.MACHINE: (name,)})
        store.add(TREE.machine_plan(name), {"objectClass": (ObjectClass.BACKUP,)})
    return Catalogue(store, TREE)


def survey(restored: Restored, catalogue: Catalogue, name: str = MACHINE) -> Order:
    saved = restored.saved
    leaf = replace(saved.leaf, machine=name, dn=TREE.leaf(name, LEAF))
    if name != MACHINE:
        leaf = replace(leaf, wishes=Wishes(original=MACHINE))
    blank = restored.order.model_copy(update={"machine": name, "restoring": None})
    return survey_small_files(catalogue, replace(saved, leaf=leaf), blank)


def test_both_texts_are_brought_and_what_differs_is_told(restored: Restored, catalogue: Catalogue) -> None:
    order = survey(restored, catalogue)
    assert (order.uuid, order.set.xml) == (UUID, restored.xml())
    for step in unretain_small_files(order, restored.saved.host):
        step.apply({})
    names = {"conflicts.json", "conflicts.txt", f"m.ldif.{LEAF}", f"m.xml.{LEAF}"}
    assert {path.name for path in restored.retain.iterdir()} == names
    assert restored.saved.host.unretained.all() == [order]


def test_taken_back_nothing_is_left_of_it(restored: Restored, catalogue: Catalogue) -> None:
    order = survey(restored, catalogue)
    steps = unretain_small_files(order, restored.saved.host)
    for step in steps:
        step.apply({})
    for _ in range(2):
        for step in reversed(steps):
            step.undo({})
    assert not restored.retain.exists()
    assert restored.saved.host.unretained.all() == []


def test_a_new_machine_gets_a_name_a_uuid_and_images_of_its_own(restored: Restored, catalogue: Catalogue) -> None:
    order = survey(restored, catalogue, NEW)
    found = describe(order.set.xml)
    assert found.name == NEW
    assert found.uuid == order.uuid != UUID
    assert [disk.source for disk in found.disks] == [str(restored.image.with_name("copy.qcow2"))]
    assert f"{Attribute.MACHINE}={NEW}," in order.set.ldif
    assert "copy.qcow2" in order.set.ldif
    assert order.warning.startswith(f"made anew from the set of {MACHINE}; ")


def test_a_restore_waits_for_what_is_under_way(restored: Restored, catalogue: Catalogue) -> None:
    catalogue.add_leaf(MACHINE, "20260102T000000Z", "20260102T000000Z")
    with pytest.raises(Refused, match="the leaf 20260102T000000Z is in mode initialize; end that first") as refused:
        survey(restored, catalogue)
    assert refused.value.code is ReturnValue.CANNOT_LOCK_MACHINE


def test_what_an_earlier_restore_left_is_not_written_over(restored: Restored, catalogue: Catalogue) -> None:
    (restored.retain / "before").mkdir()
    with pytest.raises(Refused, match=r"is not empty \(before\): what an earlier restore kept") as refused:
        survey(restored, catalogue)
    assert refused.value.code is ReturnValue.RETAIN_NOT_EMPTY
