"""What is asked before a set is brought back: nothing goes where none reads it, over what none knows, or without room.

The set, its notes and the images are real files; libvirt is played, as far as it is asked.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
from blake3 import blake3

from nodeagent.host.description import describe
from nodeagent.host.hypervisor import View
from nodeagent.operations.finding import find_set
from nodeagent.operations.restore_survey import survey_restore
from nodeagent.operations.saved_machine import SavedMachine
from nodeagent.operations.unretain import unretain_large_files
from nodeagent.operations.unretain_survey import survey_large_files
from nodeagent.order import Order, Restoring
from nodeagent.restoring.allowed import AllowedPlaces
from nodeagent.steps import Host
from nodeagent.unretained import Unretained
from tests.pure.restored_machine import PLACES, UUID, description
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf, Wishes
from vmkeep.contract.machine import Power
from vmkeep.contract.manifest import Manifest, Role, SetFile
from vmkeep.contract.methods import Method
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.contract.paths import STAND_IN_STATE
from vmkeep.directory.ldif_text import to_ldif
from vmkeep.directory.port import Entry

MACHINE, LEAF = "m", "20260101T000000Z"
TREE = Tree("dc=example,dc=org")
KIB = 1 << 10


@dataclass
class PlayedHypervisor:
    """A machine that libvirt knows, or None."""

    xml: str | None = None
    power: Power = Power.OFF

    def look(self, _name: str) -> View | None:
        return View(self.power, False, False, self.xml, describe(self.xml)) if self.xml else None

    def definition(self, _name: str) -> str:
        return self.xml or ""

    def has_managed_save(self, _name: str) -> bool:
        return False

    def name_of_uuid(self, _uuid: str) -> str:
        return MACHINE if self.xml else ""

    def disks_of_others(self, _name: str) -> dict[str, str]:
        return {}


@dataclass
class Restored:
    """A set of a machine that was off, with one disk, its small files brought back."""

    folder: Path
    hypervisor: PlayedHypervisor = field(default_factory=PlayedHypervisor)
    wishes: Wishes = field(default_factory=Wishes)

    @property
    def image(self) -> Path:
        return self.folder / "images" / "m.qcow2"

    @property
    def retain(self) -> Path:
        return self.folder / "images/retain/vm-persistent/p" / MACHINE / LEAF

    @property
    def order(self) -> Order:
        return Order(
            leaf_dn=TREE.leaf(MACHINE, LEAF),
            machine=MACHINE,
            timestamp=LEAF,
            mode=Mode.UNRETAINING_LARGE_FILES,
            uuid=UUID,
            power=Power.OFF,
            disks=(),
            retain_root=str(self.folder / "images/retain"),
            backup_root=str(self.folder / "backup"),
            place=("vm-persistent", "p"),
            restoring=Restoring(set_directory="", xml=self.xml()),
        )

    @property
    def saved(self) -> SavedMachine:
        hypervisor: Any = self.hypervisor
        images: Any = SimpleNamespace(
            header=lambda *_: SimpleNamespace(backing_file=None, virtual_size=1), is_open=lambda *_: False
        )
        host = Host("n1", hypervisor, images, (str(self.folder),), {}, Unretained(self.folder / "notes"))
        leaf = Leaf(TREE.leaf(MACHINE, LEAF), MACHINE, LEAF, "unretainingLargeFiles", "0", wishes=self.wishes)
        plan: Any = SimpleNamespace(restore_without_state=False, force_start=False)
        found = find_set(leaf, str(self.folder / "backup"), host.roots)
        places: AllowedPlaces = replace(PLACES, image_roots=(str(self.folder / "images"),))
        return SavedMachine(leaf, plan, found, host, places, TREE)

    def xml(self, image: Path | None = None) -> str:
        return description().replace("/images/m.qcow2", str(image or self.image))

    def ldif(self, image: Path) -> str:
        dn = TREE.machine(MACHINE)
        disk = {Attribute.DISK: ("vda",), Attribute.DEVICE: ("disk",), Attribute.SOURCE_FILE: (str(image),)}
        return to_ldif(
            [
                Entry(dn, {"objectClass": (ObjectClass.MACHINE,), Attribute.MACHINE: (MACHINE,)}),
                Entry(f"ou=devices,{dn}", {"objectClass": ("organizationalUnit",), "ou": ("devices",)}),
                Entry(f"{Attribute.DISK}=vda,ou=devices,{dn}", {"objectClass": (ObjectClass.DISK,), **disk}),
            ]
        )

    def make(self) -> None:
        (self.folder / "images").mkdir()
        directory = self.folder / "backup/vm-persistent/p" / MACHINE / LEAF
        directory.mkdir(parents=True)
        contents: dict[Role, bytes] = {
            "state": STAND_IN_STATE.encode(),
            "xml": self.xml().encode(),
            "ldif": self.ldif(self.image).encode(),
            "disk": b"x" * (64 * KIB),
        }
        files = []
        for role, content in contents.items():
            (directory / role).write_bytes(content)
            digest = f"blake3:{blake3(content).hexdigest()}"
            target = "vda" if role == "disk" else None
            files.append(SetFile(name=role, role=role, size=len(content), digest=digest, target=target))
        manifest = Manifest(
            machine=MACHINE,
            uuid=UUID,
            timestamp=LEAF,
            node="n1",
            power=Power.OFF,
            method=Method.SAVE,
            consistency="off",
            files=tuple(files),
            versions={},
        )
        (directory / f"manifest.json.{LEAF}").write_text(manifest.to_json())
        self.retain.mkdir(parents=True)
        self.edit(self.image)
        self.saved.host.unretained.note(self.order)

    def edit(self, image: Path) -> None:
        """Have the disk come back at this path."""
        (self.retain / f"{MACHINE}.xml.{LEAF}").write_text(self.xml(image))
        (self.retain / f"{MACHINE}.ldif.{LEAF}").write_text(self.ldif(image))

    def ask_large(self, images: tuple[str, ...] = ()) -> Order:
        return survey_large_files(self.saved, self.order, images)

    def ask_restore(self) -> Order:
        (self.retain / "disk").write_bytes(b"x")
        return survey_restore(self.saved, self.order, str(self.folder))


@pytest.fixture
def restored(tmp_path: Path) -> Restored:
    restored = Restored(tmp_path)
    restored.make()
    return restored


# where an image goes


def test_a_file_that_nobody_calls_the_machines_own_is_not_replaced(restored: Restored) -> None:
    """What a restore replaces is removed in the end, and another node's machine may have its image there."""
    other = restored.image.with_name("other.qcow2")
    restored.edit(other)
    assert [disk.path for disk in restored.ask_large().disks] == [str(other)], "there is nothing yet"
    other.write_bytes(b"of somebody else")
    with pytest.raises(Refused, match="neither libvirt nor the directory") as refused:
        restored.ask_large((str(restored.image),))
    assert refused.value.code == 103
    assert f"{MACHINE}: there is a file at {other}, where vda is to go" in refused.value.sentence


@pytest.mark.parametrize("by", ["the directory", "libvirt"])
def test_an_image_that_is_known_to_be_the_machines_own_is_replaced(by: str, restored: Restored) -> None:
    restored.image.write_bytes(b"of this machine")
    if by == "libvirt":
        restored.hypervisor.xml = restored.xml()
    order = restored.ask_large((str(restored.image),) if by == "the directory" else ())
    assert [disk.path for disk in order.disks] == [str(restored.image)]


@pytest.mark.parametrize("ask", [Restored.ask_large, Restored.ask_restore], ids=["large files", "restore"])
def test_a_single_disk_does_not_go_where_the_machines_definition_does_not_look(
    ask: Callable[[Restored], Order], restored: Restored
) -> None:
    """The leaf would say restored, and the machine would run on with the disk it has."""
    moved = restored.image.with_name("moved.qcow2")
    restored.wishes = Wishes(disks=("vda",))
    restored.hypervisor.xml = restored.xml(moved)
    with pytest.raises(Refused) as refused:
        ask(restored)
    assert refused.value.code == 33
    assert f"vda would come back at {restored.image}" in refused.value.sentence
    assert f"has {moved} there" in refused.value.sentence
    restored.edit(moved)
    assert [disk.path for disk in ask(restored).disks] == [str(moved)]
    restored.wishes, restored.hypervisor.xml = Wishes(), restored.xml(restored.image)
    assert [disk.path for disk in ask(restored).disks] == [str(moved)], "the whole machine is defined anew"


# room


def test_large_files_asked_for_again_need_no_more_room_than_at_first(
    restored: Restored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the attempt before lie there still, and go one by one."""
    free = have_free(monkeypatch, 60 * KIB)
    with pytest.raises(Refused, match="bytes free") as refused:
        restored.ask_large()
    assert refused.value.code == 47
    (restored.retain / "disk").write_bytes(b"x" * (32 * KIB))
    restored.ask_large()
    assert free == [str(restored.order.retain_root)] * 2


def test_room_for_the_memory_of_a_machine_that_runs_is_asked_for_before_hours_of_copying(
    restored: Restored, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored.hypervisor.xml = restored.xml()
    memory = describe(restored.xml()).memory
    have_free(monkeypatch, memory + 64 * KIB)
    restored.ask_large()
    restored.hypervisor.power = Power.RUNNING
    with pytest.raises(Refused, match="bytes free"):
        restored.ask_large()
    have_free(monkeypatch, 2 * memory)
    restored.ask_large()


# taking back


def test_of_a_copy_that_was_killed_nothing_stays_where_the_rest_is_taken_back(restored: Restored) -> None:
    order, left = restored.ask_large(), [restored.retain / "disk", restored.retain / "disk.partial"]
    for path in left:
        path.write_bytes(b"half")
    for step in reversed(unretain_large_files(order, restored.saved.host)):
        step.undo({})
    assert not any(path.exists() for path in left)
    assert sorted(path.name for path in restored.retain.iterdir()) == [f"m.ldif.{LEAF}", f"m.xml.{LEAF}"]


def have_free(monkeypatch: pytest.MonkeyPatch, free: int) -> list[str]:
    """Let every filesystem have so many bytes free; returns which are asked."""
    asked: list[str] = []

    def free_bytes(folder: Any) -> int:
        asked.append(str(PurePosixPath(folder.path)))
        return free

    monkeypatch.setattr("nodeagent.host.folders.Folder.free_bytes", free_bytes)
    return asked
