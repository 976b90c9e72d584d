"""A machine that is moved while it is backed up, between two real libvirts: it is followed, or the leaf says why not.

Afterwards it is whole, and has never missed a count.
"""

from collections.abc import Iterator
from dataclasses import replace

import libvirt
import pytest

from lab import ticks
from lab.cluster import LabOptions
from lab.hypervisor import Node
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.counting import assert_runs_over_its_own_images, chains
from tests.cluster.moving import Moving
from tests.cluster.plain import files_below
from tests.conftest import ClusterFactory


@pytest.fixture(scope="module")
def moving(cluster: ClusterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moving]:
    with Moving.between(cluster(LabOptions(nodes=2, machines=0)), tmp_path_factory.mktemp("told")) as moving:
        yield moving


@pytest.fixture(scope="module")
def wanderer(moving: Moving) -> Machine:
    """One that counts, and goes through tests of this module, however often it is moved."""
    return moving.add(MachineSpec())


@pytest.fixture(scope="module")
def small(moving: Moving) -> Machine:
    """One that is moved quickly, and has something on its disk."""
    return moving.add(MachineSpec(kind="bios", content_mib=2))


@pytest.fixture
def counting(moving: Moving, wanderer: Machine) -> Iterator[Machine]:
    """It runs on the old node; in the end on whichever it is, over its own images, and has missed no count."""
    bring_home(moving, wanderer)
    yield wanderer
    assert_runs_over_its_own_images(moving.lab, replace(wanderer, node=where(moving, wanderer)))


@pytest.fixture
def machine(moving: Moving, small: Machine) -> Iterator[Machine]:
    """It runs on the old node; in the end on whichever it is, over its own images, with its content."""
    bring_home(moving, small)
    yield small
    assert_over_its_own_images(replace(small, node=where(moving, small)))


def bring_home(moving: Moving, machine: Machine) -> None:
    if where(moving, machine) is moving.new:
        moving.migrate(machine, moving.new, moving.old)
    moving.say(machine, moving.old)
    moving.set_plan(machine, vmkeepMethod="save")


def where(moving: Moving, machine: Machine) -> Node:
    return moving.old if is_here(machine) else moving.new


def assert_over_its_own_images(machine: Machine) -> None:
    domain = machine.node.domain(machine.name)
    assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    own = [[str(path)] for path in machine.disks]
    assert chains(domain.XMLDesc()) == chains(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) == own
    for disk in machine.disks:
        sets.assert_whole(disk)


def is_here(machine: Machine) -> bool:
    known = machine.node.connection().listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
    return machine.name in {domain.name() for domain in known}


def assert_kept(moving: Moving, machine: Machine, leaf: str) -> None:
    """The set is complete, its images are whole and of one instant, and nothing of it is left in retain."""
    entry = moving.plain.leaf(machine.name, leaf)
    assert (entry["sstProvisioningMode"], entry["sstProvisioningReturnValue"]) == (["retained"], ["0"])
    folder = sets.directory_of(machine, leaf)
    assert entry["vmkeepSetDirectory"] == [str(folder)]
    sets.assert_digests(folder)
    image = next(path for path in folder.iterdir() if ".qcow2." in path.name)
    sets.assert_whole(image)
    if machine.spec.kind == "linux":
        assert 0 < ticks.newest_on_disk(image) <= ticks.last_count(machine.serial)
    assert [name for name in files_below(moving.old.retain) if leaf in name] == []


@pytest.mark.parametrize("method", ["save", "live", "disk"])
def test_a_machine_that_migrates_between_snapshot_and_merge_is_followed_by_its_new_node(
    moving: Moving, counting: Machine, method: str
) -> None:
    moving.set_plan(counting, vmkeepMethod=method)
    leaf = moving.snapshotted(counting)
    moving.migrate(counting, moving.old, moving.new)
    moving.say(counting, moving.new)
    moving.plain.step(counting.name, leaf, "merge", "merged")
    moving.plain.step(counting.name, leaf, "retain", "retained")
    assert_kept(moving, counting, leaf)
    assert sets.manifest(sets.directory_of(counting, leaf))["node"] == moving.old.name


def test_a_machine_that_migrates_between_merge_and_retain_is_followed_by_its_new_node(
    moving: Moving, counting: Machine
) -> None:
    leaf = moving.snapshotted(counting)
    moving.plain.step(counting.name, leaf, "merge", "merged")
    moving.migrate(counting, moving.old, moving.new)
    moving.say(counting, moving.new)
    moving.plain.step(counting.name, leaf, "retain", "retained")
    assert_kept(moving, counting, leaf)


@pytest.mark.parametrize(
    ("mode", "line", "done"),
    [
        ("snapshotting", "ended save", "snapshotted"),
        ("merging", "began merge vda", "merged"),
        ("retaining", "ended carry *.qcow2", "retained"),
    ],
)
def test_who_began_a_step_ends_it_also_where_the_machine_is_said_to_be_elsewhere_meanwhile(
    moving: Moving, machine: Machine, mode: str, line: str, done: str
) -> None:
    """And the node that it is said to be on leaves it alone until then."""
    plain, asked = moving.plain, {"snapshotting": "snapshot", "merging": "merge", "retaining": "retain"}[mode]
    leaf = plain.free_timestamp(machine.name)
    plain.add_leaf(machine.name, leaf)
    for before, after in {"snapshot": "snapshotted", "merge": "merged"}.items():
        if before == asked or asked == "snapshot":
            break
        plain.step(machine.name, leaf, before, after)
    with moving.held(machine, mode, line):
        plain.ask(machine.name, leaf, asked)
        moving.wait_until_held(machine, mode)
        moving.say(machine, moving.new)
        log = moving.new.folder / "log/nodeagent.log"
        told = f"{machine.name} was moved here while {moving.old.name} is at {mode}"
        plain.modify(plain.leaf_dn(machine.name, leaf), "replace description touched")  # wakes both agents
        until(f"{log} to say: {told}", lambda: told in log.read_text(), 60)
        assert plain.leaf(machine.name, leaf)["vmkeepNode"] == [moving.old.name]
    entry = plain.wait(machine.name, leaf, done)
    assert (entry["sstProvisioningMode"], entry["sstProvisioningReturnValue"]) == ([done], ["0"]), entry
    assert "vmkeepNode" not in entry
    if mode == "snapshotting":
        moving.migrate(machine, moving.old, moving.new)
        plain.step(machine.name, leaf, "merge", "merged")
    if mode != "retaining":
        plain.step(machine.name, leaf, "retain", "retained")
    assert_kept(moving, machine, leaf)


def test_what_a_dead_agent_was_at_is_done_by_the_new_node_and_left_alone_when_it_is_back(
    moving: Moving, machine: Machine
) -> None:
    plain = moving.plain
    leaf = moving.snapshotted(machine)
    plain.step(machine.name, leaf, "merge", "merged")
    with moving.held(machine, "retaining", "ended carry *.qcow2"):
        plain.ask(machine.name, leaf, "retain")
        moving.wait_until_held(machine, "retaining")
        moving.lab.kill_agent(moving.old.name)
    try:
        moving.migrate(machine, moving.old, moving.new)
        moving.say(machine, moving.new)
        plain.modify(plain.leaf_dn(machine.name, leaf), "delete vmkeepNode")  # as the controller does in the end
        moving.ask_again(machine, leaf, "retain")
        plain.wait(machine.name, leaf, "retained")
        assert_kept(moving, machine, leaf)
    finally:
        moving.start_agent(moving.old)
    log = moving.old.folder / "log/nodeagent.log"
    told = f"shows neither the machine nor its leaf {leaf}"
    until(f"{log} to say: {told}", lambda: told in log.read_text(), 60)
    assert_kept(moving, machine, leaf)


# a node that sees the images, but not the retain directory


def test_a_set_that_the_new_node_does_not_see_is_carried_by_the_old_one_while_the_machine_runs_on(
    moving: Moving, machine: Machine
) -> None:
    leaf = moving.snapshotted(machine)
    with moving.hidden(moving.old.retain):
        with pytest.raises(libvirt.libvirtError, match="No such file"):
            moving.migrate(machine, moving.old, moving.new)
        assert is_here(machine), "libvirt moves no machine to where its images cannot be opened"
        moving.plain.step(machine.name, leaf, "merge", "merged")
        moving.migrate(machine, moving.old, moving.new)
        moving.say(machine, moving.new)
        code, why = moving.refused(machine, leaf, "retain", "retained")
        assert code == 116
        assert f"{leaf} lies in {moving.old.retain}" in why
        assert f"{leaf} on {moving.old.name}, and {moving.new.name} does not see it" in why
        assert f"or set sstNode to {moving.old.name} (until the leaf is finished" in why
        moving.say(machine, moving.old)
        moving.ask_again(machine, leaf, "retain")
        moving.plain.wait(machine.name, leaf, "retained")
        moving.say(machine, moving.new)
        assert_kept(moving, machine, leaf)


def test_a_machine_over_overlays_gets_its_own_images_where_its_set_is_not_seen_and_the_leaf_says_where_that_lies(
    moving: Moving, machine: Machine
) -> None:
    moving.set_plan(machine, vmkeepMethod="disk")
    leaf = moving.snapshotted(machine)
    with moving.hidden(moving.old.retain):
        moving.migrate(machine, moving.old, moving.new)
        moving.say(machine, moving.new)
        code, why = moving.refused(machine, leaf, "merge", "merged")
        assert code == 37
        assert f"{moving.old.name} laid it there, {moving.new.name} sees none" in why
        assert_over_its_own_images(replace(machine, node=moving.new))


# machines that are off


def test_a_machine_that_is_off_and_is_defined_elsewhere_is_merged_there(moving: Moving) -> None:
    machine = moving.add(MachineSpec(kind="bios", state="off", content_mib=2))
    leaf = moving.snapshotted(machine)
    moved = moving.define_elsewhere(machine, moving.old, moving.new)
    moving.say(machine, moving.new)
    moving.plain.step(machine.name, leaf, "merge", "merged")
    moving.plain.step(machine.name, leaf, "retain", "retained")
    sets.assert_whole(moved.disks[0])
    sets.assert_digests(sets.directory_of(machine, leaf))


def test_over_an_image_that_is_not_seen_nothing_is_merged_and_moved_back_it_is(moving: Moving) -> None:
    machine = moving.add(MachineSpec(kind="bios", state="off", content_mib=2))
    leaf = moving.snapshotted(machine)
    before = machine.disks[0].read_bytes()
    with moving.hidden(moving.old.retain):
        moved = moving.define_elsewhere(machine, moving.old, moving.new)
        moving.say(machine, moving.new)
        code, why = moving.refused(machine, leaf, "merge", "merged")
    assert code == 116
    assert f"which {moving.old.name} laid there and {moving.new.name} does not see" in why
    assert machine.disks[0].read_bytes() == before
    moving.define_elsewhere(moved, moving.new, moving.old)
    moving.say(machine, moving.old)
    moving.ask_again(machine, leaf, "merge")
    assert moving.plain.wait(machine.name, leaf, "merged")["sstProvisioningReturnValue"] == ["0"]
    sets.assert_whole(machine.disks[0])


def test_an_image_is_not_written_to_by_the_node_its_machine_has_left_while_that_was_at_merging(moving: Moving) -> None:
    """It was off, and runs elsewhere by now, over the same file; libvirt still knows it here, as one that is off."""
    machine = moving.add(MachineSpec(kind="bios", state="off", content_mib=2))
    leaf = moving.snapshotted(machine)
    with moving.held(machine, "merging", "began merge vda"):
        moving.plain.ask(machine.name, leaf, "merge")
        moving.wait_until_held(machine, "merging")
        definition = moving.old.domain(machine.name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        running = moving.new.connection().defineXML(definition)
        running.create()
        moving.say(machine, moving.new)
    entry = moving.plain.wait(machine.name, leaf, "merged")
    assert entry["sstProvisioningReturnValue"] == ["115"], entry
    assert f"{machine.name} is not shown to this node" in entry["vmkeepMessage"][0]
    moving.ask_again(machine, leaf, "merge")
    assert moving.plain.wait(machine.name, leaf, "merged")["sstProvisioningReturnValue"] == ["0"]
    sets.assert_whole(machine.disks[0])
    assert running.isActive()
    running.destroy()
