"""What is asked before a backup's steps, over real images and a directory in memory; libvirt is played."""

from pathlib import Path
from typing import Any

import pytest

from lab import programs
from nodeagent.host.description import describe
from nodeagent.host.hypervisor import View
from nodeagent.operations.making import NAME
from nodeagent.operations.survey import Rules, Surveyor
from nodeagent.order import Order
from tests.orders import host_at
from tests.pure.restored_machine import PLACES, description
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.memory import MemoryStore

MACHINE, TIMESTAMP = "m", "20260101T000000Z"
TREE = Tree("dc=example,dc=org")
MIB = 1 << 20


class Node:
    """A node with one machine of one disk, as libvirt, directory and filesystem have it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image = folder / "images/vm-persistent/p/m.qcow2"
        self.image.parent.mkdir(parents=True)
        for name in ("images/retain", "backup"):
            (folder / name).mkdir()
        programs.run(["qemu-img", "create", "-q", "-f", "qcow2", self.image, "1M"])
        self.xml = description().replace("/images/m.qcow2", str(self.image))
        self.power = Power.OFF
        self.moved_away = False
        self.store = MemoryStore(TREE.machines)
        self.dn = TREE.machine(MACHINE)
        self.store.add(self.dn, {"objectClass": (ObjectClass.MACHINE,), Attribute.MACHINE: (MACHINE,)})
        self.store.add(f"ou=devices,{self.dn}", {"objectClass": ("organizationalUnit",)})
        self.disk = f"{Attribute.DISK}=vda,ou=devices,{self.dn}"
        disk = {Attribute.DISK: ("vda",), Attribute.DEVICE: ("disk",), Attribute.SOURCE_FILE: (str(self.image),)}
        self.store.add(self.disk, {"objectClass": (ObjectClass.DISK,), **disk})
        self.plan = TREE.machine_plan(MACHINE)
        roots = {
            Attribute.RETAIN_ROOT: (f"file://{folder}/images/retain",),
            Attribute.BACKUP_ROOT: (f"file://{folder}/backup",),
        }
        self.store.add(self.plan, {"objectClass": (ObjectClass.BACKUP,), **roots})

    def look(self, _name: str) -> View:
        return View(self.power, False, self.moved_away, self.xml, describe(self.xml))

    def survey(self, mode: Mode = Mode.SNAPSHOTTING, bandwidth: int = 0) -> Order:
        rules = Rules((str(self.folder),), (f"{self.folder}/images",), ("/nvram",), f"{self.folder}/state", PLACES)
        surveyor = Surveyor(Catalogue(self.store, TREE), host_at(self.folder, self), rules)
        leaf = Leaf(TREE.leaf(MACHINE, TIMESTAMP), MACHINE, TIMESTAMP, mode.value, "0", bandwidth=bandwidth)
        return surveyor.survey(leaf, mode)

    def refusal(self, mode: Mode = Mode.SNAPSHOTTING) -> tuple[ReturnValue, str]:
        with pytest.raises(Refused) as raised:
            self.survey(mode)
        assert raised.value.sentence.startswith(MACHINE)
        return raised.value.code, raised.value.sentence


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_machine_that_is_well_gets_its_orders(node: Node) -> None:
    order = node.survey()
    assert [(disk.target, disk.path, disk.size) for disk in order.disks] == [("vda", str(node.image), MIB)]
    assert node.survey(Mode.MERGING).bytes_total == MIB
    assert node.survey(Mode.RETAINING).bytes_total == 0


def test_merge_and_retain_keep_to_what_the_leaf_was_given_where_that_is_less_than_the_plans(node: Node) -> None:
    node.store.replace(node.plan, {Attribute.BANDWIDTH_MERGE: ("200",), Attribute.BANDWIDTH_COPY: ("10",)})
    for mode in (Mode.MERGING, Mode.RETAINING):
        order = node.survey(mode, bandwidth=25)
        assert (order.bandwidth, order.bandwidth_copy) == (25, 10)
    order = node.survey(Mode.SNAPSHOTTING, bandwidth=25)
    assert (order.bandwidth, order.bandwidth_copy) == (200, 10)


@pytest.mark.parametrize("mode", [Mode.SNAPSHOTTING, Mode.MERGING])
def test_an_image_that_is_gone_or_none_is_named(mode: Mode, node: Node) -> None:
    node.image.write_bytes(b"no image")
    code, sentence = node.refusal(mode)
    assert code is ReturnValue.UNEXPECTED_IMAGE
    assert f"{node.image} is not a qcow2 image" in sentence
    node.image.unlink()
    assert node.refusal(mode) == (code, f"m: the image {node.image} of vda is not there")


@pytest.mark.parametrize(("source", "why"), [(None, "is no image file"), ("relative", "absolute"), ("/a/../b", "abs")])
def test_a_disk_that_is_no_absolute_file_is_refused(source: str | None, why: str, node: Node) -> None:
    node.store.replace(node.disk, {Attribute.SOURCE_FILE: (source,) if source else ()})
    assert why in node.refusal()[1]


def test_a_disk_that_libvirt_has_on_no_qcow2_file_is_refused(node: Node) -> None:
    node.xml = node.xml.replace("type='qcow2'", "type='raw'")
    assert node.refusal()[0] is ReturnValue.UNKNOWN_BACKEND
    node.xml = node.xml.replace("type='raw'", "")
    assert "vda is of no known format on" in node.refusal()[1]


def test_an_image_outside_the_roots_of_images_is_refused(node: Node) -> None:
    outside = node.folder / "vm-persistent/p/m.qcow2"
    outside.parent.mkdir(parents=True)
    node.image.rename(outside)
    node.xml = node.xml.replace(str(node.image), str(outside))
    node.store.replace(node.disk, {Attribute.SOURCE_FILE: (str(outside),)})
    assert node.refusal()[0] is ReturnValue.PATH_NOT_ALLOWED


def test_a_machine_that_moved_away_is_refused(node: Node) -> None:
    node.moved_away = True
    code, sentence = node.refusal()
    assert code is ReturnValue.WRONG_STATE_INFORMATION
    assert "m has moved away from n1; set sstNode" in sentence


def test_an_entry_that_names_another_machine_is_refused(node: Node) -> None:
    node.store.replace(node.dn, {Attribute.MACHINE: ("other", MACHINE)})
    assert node.refusal()[0] is ReturnValue.INVALID_NAME


def test_a_machine_whose_entry_is_gone_is_refused(node: Node) -> None:
    for dn in (node.disk, f"ou=devices,{node.dn}", node.plan, node.dn):
        node.store.delete(dn)
    assert node.refusal()[0] is ReturnValue.CANNOT_FIND_MACHINE


@pytest.mark.parametrize(
    ("attribute", "code"),
    [
        (Attribute.RETAIN_ROOT, ReturnValue.RETAIN_ROOT_MISSING),
        (Attribute.BACKUP_ROOT, ReturnValue.BACKUP_ROOT_MISSING),
    ],
)
def test_a_root_behind_a_link_is_refused_like_one_that_is_missing(attribute: Attribute, code: int, node: Node) -> None:
    (node.folder / "link").symlink_to(node.folder / "backup")
    node.store.replace(node.plan, {attribute: (f"file://{node.folder}/link",)})
    found, sentence = node.refusal()
    assert found is code
    assert "links are not followed" in sentence
    node.store.replace(node.plan, {attribute: (f"file://{node.folder}/nowhere",)})
    assert node.refusal() == (
        code,
        f"m: {attribute} names {node.folder}/nowhere, which is not there on n1; make or mount it",
    )


def test_nothing_is_written_over_an_earlier_backup(node: Node) -> None:
    order = node.survey()
    published = Path(order.paths.backup) / f"manifest.json.{TIMESTAMP}"
    published.parent.mkdir(parents=True)
    published.write_text("{}")
    assert f"there is a set of {TIMESTAMP} already in {published.parent}" in node.refusal()[1]
    assert node.survey(Mode.RETAINING).published
    retain = Path(order.paths.retain)
    retain.mkdir(parents=True)
    (retain / NAME).write_text("{}")
    code, sentence = node.refusal()
    assert code is ReturnValue.RETAIN_NOT_EMPTY
    assert NAME in sentence
    assert node.survey(Mode.RETAINING).bytes_total == 2


def test_firmware_outside_its_roots_is_refused_and_what_is_there_is_taken_along(node: Node) -> None:
    node.xml = node.xml.replace("</os>", "<nvram>/etc/shadow</nvram></os>")
    code, sentence = node.refusal()
    assert code is ReturnValue.PATH_NOT_ALLOWED
    assert "nvram_roots in the agent's settings" in sentence
    node.xml = node.xml.replace("<nvram>/etc/shadow</nvram>", "")
    node.xml = node.xml.replace("</devices>", "<tpm><backend type='emulator'/></tpm></devices>")
    assert node.survey().firmware == ()
    uuid: Any = describe(node.xml).uuid
    tpm = node.folder / "state/swtpm" / uuid / "tpm1.2/tpm-00.permall"
    tpm.parent.mkdir(parents=True)
    tpm.write_bytes(b"keys")
    [firmware] = node.survey().firmware
    assert (firmware.role, firmware.path) == ("tpm", str(tpm))


@pytest.mark.parametrize("of", ["Image", "Directory"])
def test_owners_are_numbers_or_names_that_the_node_knows(of: str, node: Node) -> None:
    owner = f"sstVirtualizationDisk{'Image' if of == 'Image' else 'ImageDirectory'}Owner"
    ownership = "files" if of == "Image" else "directories"
    for value, uid in (("107", 107), ("root", 0)):
        node.store.replace(node.plan, {owner: (value,)})
        assert getattr(node.survey(), ownership).uid == uid
    node.store.replace(node.plan, {owner: ("nobody-of-this-name",)})
    assert "'nobody-of-this-name', whom this node does not know" in node.refusal()[1]
