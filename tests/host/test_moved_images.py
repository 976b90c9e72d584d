"""The image of a machine that is off here and may run elsewhere: a merge leaves it as it is, to the byte."""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest

from lab import programs
from nodeagent.moves import Moves
from nodeagent.operations.following import to_be_merged
from nodeagent.operations.merge import merge
from nodeagent.operations.overlays import write_back
from nodeagent.operations.streaming import make_whole
from nodeagent.order import Order
from nodeagent.steps import LEFT, Host
from tests.orders import disk_in, host_at, order_in, plain_image
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.machine import Power
from vmkeep.contract.methods import Route
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.memory import MemoryStore

TREE = Tree("dc=example,dc=org")


@pytest.fixture
def order(tmp_path: Path) -> Order:
    """An overlay in the image's place, over what a snapshot laid into retain."""
    image = plain_image(tmp_path)
    order = order_in(tmp_path, Mode.MERGING, power=Power.OFF, disks=(disk_in(tmp_path, size=1 << 20),))
    backing = Path(order.paths.retain) / "d.qcow2"
    backing.parent.mkdir(parents=True)
    image.rename(backing)
    host_at(tmp_path).images.create_overlay(PurePosixPath(image), PurePosixPath(backing), 1 << 20)
    programs.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", image])
    return order


def host_of(folder: Path, says: str) -> Host:
    """Where the directory says that the machine is, or what libvirt says of it."""
    store = MemoryStore(TREE.machines)
    known = {"objectClass": (ObjectClass.MACHINE,), Attribute.MACHINE: ("vm",)}
    if says != "gone":
        store.add(TREE.machine("vm"), {**known, Attribute.NODE: ("n2" if says == "moved" else "n1",)})
    if says == "away":
        store.go_away()
    host = replace(host_at(folder), moves=Moves(Catalogue(store, TREE), "n1", "today"))
    view = host.hypervisor.look("vm")
    assert view is not None
    seen: dict[str, Any] = {"undefined": None, "migrated": replace(view, moved_away=True)}
    hypervisor: Any = SimpleNamespace(look=lambda _name: seen.get(says, view))
    return replace(host, hypervisor=hypervisor)


@pytest.mark.parametrize("says", ["moved", "gone", "undefined", "migrated"])
def test_an_image_whose_machine_has_left_is_not_written_to(tmp_path: Path, order: Order, says: str) -> None:
    host, [disk] = host_of(tmp_path, says), order.disks
    before = Path(disk.path).read_bytes()
    for write in (make_whole, write_back):
        with pytest.raises(Refused, match="its images are not written to from here") as refused:
            write(host, order, disk)
        assert refused.value.code == 115
    assert Path(disk.path).read_bytes() == before


def test_while_the_directory_cannot_be_asked_the_image_waits(tmp_path: Path, order: Order) -> None:
    [disk] = order.disks
    with pytest.raises(TryLater):
        make_whole(host_of(tmp_path, "away"), order, disk)
    assert host_at(tmp_path).header(PurePosixPath(disk.path)).backing_file


def test_the_image_of_a_machine_that_is_here_is_made_whole(tmp_path: Path, order: Order) -> None:
    host, [disk] = host_of(tmp_path, "here"), order.disks
    make_whole(host, order, disk)
    assert host.header(PurePosixPath(disk.path)).backing_file is None


def test_an_image_over_a_file_that_is_not_seen_is_refused_with_who_laid_it_there(tmp_path: Path, order: Order) -> None:
    host, leaf = host_of(tmp_path, "here"), Leaf("dn", "vm", order.timestamp, "merging", "0", set_node="n0")
    unmade = order.model_copy(update={"unmade": "its notes are missing"})
    assert "n0 laid it there, n1 sees none" in to_be_merged(unmade, leaf, host).unmade
    backing = Path(order.paths.retain) / "d.qcow2"
    backing.unlink()
    with pytest.raises(Refused, match=f"lies over {backing}, which n0 laid there and n1 does not see") as refused:
        to_be_merged(unmade, leaf, host)
    assert refused.value.code == 116
    assert to_be_merged(unmade, replace(leaf, set_node=""), host) == unmade
    assert to_be_merged(order, leaf, host) == order


def test_overlays_of_a_machine_that_has_left_are_its_new_nodes_to_write_back(tmp_path: Path, order: Order) -> None:
    frozen, *_ = merge(
        order.model_copy(update={"route": Route(freezes=True, clones=False, once=False)}), host_of(tmp_path, "moved")
    )
    assert "its images are not written to from here" in str(frozen.undo({})[LEFT])
