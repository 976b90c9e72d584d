"""A node that was lost in the middle of its work, and comes back while its machine runs on another one.

Agent, libvirt and guests are killed, RAM disk and run directory are emptied, and the agent sees another start of the
kernel: as after a loss of power. What it finds in its journal it leaves alone.
"""

from collections.abc import Iterator
from dataclasses import replace

import libvirt
import pytest

from lab import ticks
from lab.cluster import LabOptions
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.moving import Moving
from tests.cluster.plain import files_below
from tests.cluster.test_moved import assert_kept, assert_over_its_own_images
from tests.conftest import ClusterFactory


@pytest.fixture(scope="module")
def moving(cluster: ClusterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moving]:
    with Moving.between(cluster(LabOptions(nodes=2, machines=0)), tmp_path_factory.mktemp("told")) as moving:
        yield moving


def start_elsewhere(moving: Moving, machine: Machine, definition: str) -> Machine:
    """As the cluster does once it takes a node for lost: the directory first, then the machine."""
    moving.say(machine, moving.new)
    moving.new.connection().defineXML(definition).create()
    return replace(machine, node=moving.new)


def definition_of(moving: Moving, machine: Machine) -> str:
    return str(moving.old.domain(machine.name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def given_up(moving: Moving, machine: Machine, leaf: str, done: str) -> None:
    """The node that is back has ended what it was at, and let go of it; the machine does not run there."""
    entry = moving.plain.wait(machine.name, leaf, done)
    assert entry["sstProvisioningReturnValue"] == ["115"], entry
    assert f"{machine.name} is not shown to this node by the directory" in entry["vmkeepMessage"][0]
    assert "vmkeepNode" not in entry
    until("the journal to go", lambda: not files_below(moving.old.state / "journal"), 20)
    assert not moving.old.domain(machine.name).isActive()


@pytest.fixture
def machine(moving: Moving) -> Iterator[Machine]:
    """It has its own images and its data in the end, on the new node; the old one forgets it."""
    machine = moving.add(MachineSpec(kind="bios", content_mib=8))
    # Its memory outlives the loss: bringing it back where it is not any more would be possible.
    moving.set_plan(machine, sstBackupRamDiskLocation=f"file://{moving.old.folder}/none")
    before = sets.data_of(machine)
    yield machine
    moved = replace(machine, node=moving.new)
    assert_over_its_own_images(moved)
    assert sets.data_of(machine) == before
    assert files_below(moving.old.retain) == []
    moving.old.domain(machine.name).undefine()
    moving.new.domain(machine.name).destroy()


def test_what_it_was_saving_is_not_brought_up_again_where_it_runs_elsewhere(moving: Moving, machine: Machine) -> None:
    leave_alone_what_was_saved(moving, machine, "ended save")


@pytest.mark.parametrize("line", ["ended swap", "ended description"])
def test_nor_is_what_stood_over_its_overlays(rare: None, moving: Moving, machine: Machine, line: str) -> None:
    leave_alone_what_was_saved(moving, machine, line)


def leave_alone_what_was_saved(moving: Moving, machine: Machine, line: str) -> None:
    """The next backup, on the other node, puts all right."""
    definition, leaf = definition_of(moving, machine), moving.plain.free_timestamp(machine.name)
    moving.plain.add_leaf(machine.name, leaf)
    with moving.held(machine, "snapshotting", line):
        moving.plain.ask(machine.name, leaf, "snapshot")
        moving.wait_until_held(machine, "snapshotting")
        moving.lose(moving.old)
    start_elsewhere(moving, machine, definition)
    moving.boot(moving.old)
    given_up(moving, machine, leaf, "snapshotted")
    sets.assert_digests(sets.directory_of(machine, moving.plain.back_up(machine.name)))


def test_a_set_it_was_carrying_is_carried_by_the_other_one(rare: None, moving: Moving, machine: Machine) -> None:
    definition, leaf = definition_of(moving, machine), moving.snapshotted(machine)
    moving.plain.step(machine.name, leaf, "merge", "merged")
    with moving.held(machine, "retaining", "ended carry *.xml"):
        moving.plain.ask(machine.name, leaf, "retain")
        moving.wait_until_held(machine, "retaining")
        moving.lose(moving.old)
    start_elsewhere(moving, machine, definition)
    moving.boot(moving.old)
    given_up(moving, machine, leaf, "retained")
    moving.ask_again(machine, leaf, "retain")
    moving.plain.wait(machine.name, leaf, "retained")
    assert_kept(moving, machine, leaf)


def test_an_image_it_had_half_pulled_is_pulled_on_by_the_other_one(moving: Moving, machine: Machine) -> None:
    pull_on_elsewhere(moving, machine)


def test_a_guest_has_all_it_wrote_over_a_half_pulled_image(rare: None, moving: Moving) -> None:
    machine = moving.add(MachineSpec(content_mib=8))
    before = sets.data_of(machine)
    written, offset = pull_on_elsewhere(moving, machine)
    counted = until("it to count on", lambda: ticks.counts_since(machine.serial, offset)[1:], 60)
    assert counted[0] > written, "the disk that it booted from had its last count"
    assert ticks.read_serial(machine.serial).complaints == ()
    assert_over_its_own_images(replace(machine, node=moving.new))
    assert sets.data_of(machine) == before


def pull_on_elsewhere(moving: Moving, machine: Machine) -> tuple[int, int]:
    """What the guest had counted when its node was lost, and how long its log was."""
    moving.set_plan(machine, sstVirtualizationBandwidthMerge="1")
    definition, leaf = definition_of(moving, machine), moving.snapshotted(machine)
    domain = moving.old.domain(machine.name)
    moving.plain.ask(machine.name, leaf, "merge")
    until("the pull to have come some way", lambda: domain.blockJobInfo("vda").get("cur", 0) > 1 << 20, 30, step=0.02)
    moving.lose(moving.old)
    at_its_loss = ticks.last_count(machine.serial), machine.serial.stat().st_size
    assert "backing-filename" in sets.image_info(machine.disks[0]), "it is half pulled"
    start_elsewhere(moving, machine, definition)
    moving.boot(moving.old)
    given_up(moving, machine, leaf, "merged")
    moving.set_plan(machine, sstVirtualizationBandwidthMerge="0")
    moving.ask_again(machine, leaf, "merge")
    assert moving.plain.wait(machine.name, leaf, "merged")["sstProvisioningReturnValue"] == ["0"]
    moving.plain.step(machine.name, leaf, "retain", "retained")
    assert_kept(moving, machine, leaf)
    return at_its_loss
