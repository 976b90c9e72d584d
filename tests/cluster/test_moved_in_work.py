"""A machine that is moved, or said to be, while QEMU pulls its image whole and while its set is copied.

Between two real libvirts; images and retain directory lie on a filesystem of their own, so a set is copied.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import libvirt
import pytest

from lab.cluster import LabOptions
from lab.hypervisor import Node, NodeOptions
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.counting import assert_runs_over_its_own_images
from tests.cluster.moving import Moving
from tests.cluster.plain import files_below
from tests.cluster.test_moved import assert_kept, assert_over_its_own_images, bring_home, where
from tests.conftest import ClusterFactory

_MIB = 1 << 20
SLOW = "2"  # MiB/s: a pull of 24 MiB is not over before somebody hurries it


@pytest.fixture(scope="module")
def moving(cluster: ClusterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moving]:
    lab = cluster(LabOptions(nodes=2, machines=0, node=NodeOptions(store_mib=512)))
    with Moving.between(lab, tmp_path_factory.mktemp("told")) as moving:
        yield moving


@pytest.fixture(scope="module")
def wanderer(moving: Moving) -> Machine:
    """One that counts, with data that it never touches itself."""
    return moving.add(MachineSpec(content_mib=24))


@pytest.fixture
def counting(moving: Moving, wanderer: Machine) -> Iterator[Machine]:
    """It runs on the old node; in the end on whichever it is, over its own images, with its data, without a gap."""
    bring_home(moving, wanderer)
    moving.set_plan(wanderer, sstVirtualizationBandwidthMerge=SLOW)
    before = sets.data_of(wanderer)
    yield wanderer
    machine = replace(wanderer, node=where(moving, wanderer))
    assert_runs_over_its_own_images(moving.lab, machine)
    assert sets.data_of(wanderer) == before
    assert files_below(moving.old.retain) == []


# while QEMU pulls


@contextmanager
def pulling(moving: Moving, machine: Machine, leaf: str) -> Iterator[None]:
    """The merge is at work and has come some way, but not to its end; afterwards nothing holds it back."""
    domain = moving.old.domain(machine.name)
    moving.plain.ask(machine.name, leaf, "merge")
    until("the pull to have come some way", lambda: domain.blockJobInfo("vda").get("cur", 0) > _MIB, 30, step=0.02)
    yield
    if where(moving, machine) is moving.old and domain.blockJobInfo("vda"):
        domain.blockJobSetSpeed("vda", 0)


def merged(moving: Moving, machine: Machine, leaf: str) -> dict[str, list[str]]:
    entry = moving.plain.wait(machine.name, leaf, "merged")
    assert (entry["sstProvisioningMode"], entry["sstProvisioningReturnValue"]) == (["merged"], ["0"]), entry
    return entry


def refuse_migration(moving: Moving, machine: Machine) -> None:
    with pytest.raises(libvirt.libvirtError, match="domain has active block job"):
        moving.migrate(machine, moving.old, moving.new)
    assert moving.old.domain(machine.name).blockJobInfo("vda"), "the pull goes on"


def test_libvirt_moves_no_machine_that_pulls_and_the_pull_is_ended_by_who_began_it_whatever_the_directory_says(
    moving: Moving, counting: Machine
) -> None:
    """sstNode is set too early, set back, and set again; the machine is moved as soon as it can be."""
    leaf = moving.snapshotted(counting)
    with pulling(moving, counting, leaf):
        moving.say(counting, moving.new)
        refuse_migration(moving, counting)
        left_to_the_old_one(moving, counting, leaf, "merging")
        moving.say(counting, moving.old)
        moving.say(counting, moving.new)
    assert "vmkeepNode" not in merged(moving, counting, leaf)
    moving.migrate(counting, moving.old, moving.new)
    moving.plain.step(counting.name, leaf, "retain", "retained")
    assert_kept(moving, counting, leaf)


def left_to_the_old_one(moving: Moving, machine: Machine, leaf: str, mode: str) -> None:
    """The new node has read this very leaf, which it tells once, and leaves it alone."""
    log = moving.new.folder / "log/nodeagent.log"
    told = f"{machine.name} was moved here while {moving.old.name} is at {mode}"
    moving.plain.modify(moving.plain.leaf_dn(machine.name, leaf), "replace description touched")  # wakes both agents
    of_leaf = lambda: any(told in line and leaf in line for line in log.read_text().splitlines())  # noqa: E731
    until(f"{log} to say of {leaf}: {told}", of_leaf, 30)
    assert moving.plain.leaf(machine.name, leaf)["vmkeepNode"] == [moving.old.name]


def test_a_half_pulled_image_is_pulled_on_where_its_machine_was_moved(moving: Moving, counting: Machine) -> None:
    """The pull is aborted while its agent is not looking: it would begin it again at once."""
    leaf, agent = moving.snapshotted(counting), moving.lab.process(f"nodeagent {moving.old.name}")
    assert agent is not None
    with pulling(moving, counting, leaf):
        agent.kill(signal.SIGSTOP)
        try:
            abort_and_move(moving, counting)
        finally:
            agent.kill(signal.SIGCONT)
    entry = moving.plain.wait(counting.name, leaf, "merged")
    assert (entry["sstProvisioningMode"], entry["sstProvisioningReturnValue"]) == (["merging"], ["115"]), entry
    assert f"libvirt on {moving.old.name} knows it no more" in entry["vmkeepMessage"][0]
    go_on_at_the_new_one(moving, counting, leaf)


def test_a_half_pulled_image_of_a_dead_agent_is_pulled_on_and_left_alone_when_that_is_back(
    rare: None, moving: Moving, counting: Machine
) -> None:
    leaf = moving.snapshotted(counting)
    with pulling(moving, counting, leaf):
        moving.lab.kill_agent(moving.old.name)
        try:
            abort_and_move(moving, counting)
            give_up(moving, counting, leaf)
        finally:
            moving.start_agent(moving.old)
    go_on_at_the_new_one(moving, counting, leaf)


def give_up(moving: Moving, machine: Machine, leaf: str) -> None:
    """As the controller ends what nobody seems to go on with."""
    dn = moving.plain.leaf_dn(machine.name, leaf)
    moving.plain.modify(dn, "delete vmkeepNode", "replace sstProvisioningReturnValue 109")


def abort_and_move(moving: Moving, machine: Machine) -> None:
    domain = moving.old.domain(machine.name)
    domain.blockJobAbort("vda")
    assert "backing-filename" in sets.image_info(machine.disks[0]), "it is half pulled"
    moving.migrate(machine, moving.old, moving.new)
    moving.say(machine, moving.new)


def go_on_at_the_new_one(moving: Moving, machine: Machine, leaf: str) -> None:
    moving.set_plan(machine, sstVirtualizationBandwidthMerge="0")
    moving.ask_again(machine, leaf, "merge")
    merged(moving, machine, leaf)
    moving.plain.step(machine.name, leaf, "retain", "retained")
    assert_kept(moving, machine, leaf)


def test_a_merge_that_is_asked_for_while_its_machine_is_on_its_way_is_done_where_it_arrives(
    rare: None, moving: Moving, counting: Machine
) -> None:
    """libvirt waits for half a minute before it says that it cannot pull."""
    leaf = moving.snapshotted(counting)
    with moving.on_its_way(counting, seconds=45):
        moving.plain.ask(counting.name, leaf, "merge")
    moving.say(counting, moving.new)
    entry = moving.plain.wait(counting.name, leaf, "merged")
    assert entry["sstProvisioningReturnValue"] == ["115"], entry
    go_on_at_the_new_one(moving, counting, leaf)


# while a set is copied


@pytest.fixture(scope="module")
def large(moving: Moving) -> Machine:
    """One whose set has a large image, and hardly any memory."""
    return moving.add(MachineSpec(kind="bios", content_mib=16))


@pytest.fixture
def copied(moving: Moving, large: Machine) -> Iterator[Machine]:
    bring_home(moving, large)
    moving.set_plan(large, vmkeepBandwidthCopy="0")
    before = sets.data_of(large)
    yield large
    assert_over_its_own_images(replace(large, node=where(moving, large)))
    assert sets.data_of(large) == before


@dataclass(frozen=True)
class Writers:
    """Who has files of a set open to write to them."""

    moving: Moving
    folder: Path

    def inodes(self, node: Node) -> set[int]:
        """Files below the set's directory that a node's agent writes to."""
        agent = self.moving.lab.process(f"nodeagent {node.name}")
        assert agent is not None
        return {found for link in Path(f"/proc/{agent.pid}/fd").iterdir() if (found := self._written(link))}

    def _written(self, link: Path) -> int:
        try:
            name, found = link.readlink(), link.stat()
            flags = int((link.parents[1] / "fdinfo" / link.name).read_text().split("flags:")[1].split()[0], 8)
        except FileNotFoundError:
            return 0  # closed in this moment
        return found.st_ino if name.is_relative_to(self.folder) and flags & 3 and name.name[:1] != "." else 0


def copying(moving: Moving, machine: Machine, speed: str) -> tuple[str, Writers]:
    """A set that the old node has begun to copy."""
    moving.set_plan(machine, vmkeepBandwidthCopy=speed)
    leaf = moving.snapshotted(machine)
    moving.plain.step(machine.name, leaf, "merge", "merged")
    writers = Writers(moving, sets.directory_of(machine, leaf))
    moving.plain.ask(machine.name, leaf, "retain")
    partial = writers.folder / f"{machine.disks[0].name}.{leaf}.partial"
    until("the old node to copy the image", lambda: partial.exists() and writers.inodes(moving.old), 30, step=0.02)
    return leaf, writers


def test_a_set_is_copied_to_its_end_by_who_began_it_and_by_nobody_else(moving: Moving, copied: Machine) -> None:
    leaf, writers = copying(moving, copied, "16")
    moving.say(copied, moving.new)
    left_to_the_old_one(moving, copied, leaf, "retaining")
    seen: list[set[int]] = []

    def is_over() -> bool:
        seen.append(writers.inodes(moving.new))
        return moving.plain.leaf(copied.name, leaf)["sstProvisioningMode"] == ["retained"]

    until("the set to be copied", is_over, 60, step=0.02)
    assert not any(seen), "the new node has written to it"
    assert_kept(moving, copied, leaf)


def test_who_copies_a_set_stops_within_a_file_once_the_leaf_is_given_to_another_node(
    moving: Moving, copied: Machine
) -> None:
    """It would go on for half a minute. For a moment both copy; what the new node began becomes the set."""
    leaf, writers = copying(moving, copied, "1")
    moving.say(copied, moving.new)
    moving.set_plan(copied, vmkeepBandwidthCopy="3")
    give_up(moving, copied, leaf)
    moving.ask_again(copied, leaf, "retain")
    until("the old node to stop", lambda: not writers.inodes(moving.old), 12, step=0.02)
    late: set[int] = set()
    theirs: set[int] = set()

    def is_over() -> bool:
        late.update(writers.inodes(moving.old))
        theirs.update(writers.inodes(moving.new))
        return moving.plain.leaf(copied.name, leaf)["sstProvisioningMode"] == ["retained"]

    until("the set to be copied", is_over, 60, step=0.02)
    assert not late, "the old node has begun again"
    image = writers.folder / f"{copied.disks[0].name}.{leaf}"
    assert image.stat().st_ino in theirs, "the image of the set is not what the new node has written"
    assert_kept(moving, copied, leaf)


# a machine that the directory looks for on the wrong node


def test_nothing_is_renamed_under_a_machine_that_runs_elsewhere_though_the_directory_says_it_is_off_here(
    moving: Moving, copied: Machine
) -> None:
    """It is defined on both nodes, as after a migration that leaves the definition, and sstNode is wrong."""
    definition = moving.old.domain(copied.name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    stale = moving.new.connection().defineXML(definition)
    moving.say(copied, moving.new)
    inode = copied.disks[0].stat().st_ino
    try:
        code, why = moving.plain.fail(copied.name)
        assert (code, copied.disks[0].stat().st_ino) == (18, inode)
        assert f"its image {copied.disks[0]} is open in a QEMU" in why
        assert "set sstNode to that" in why
    finally:
        stale.undefine()
        moving.say(copied, moving.old)
    assert_kept(moving, copied, whole(moving, copied))


def whole(moving: Moving, machine: Machine) -> str:
    leaf = moving.snapshotted(machine)
    for asked, done in (("merge", "merged"), ("retain", "retained")):
        moving.plain.step(machine.name, leaf, asked, done)
    return leaf
