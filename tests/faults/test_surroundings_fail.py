"""What an agent stands on is taken away in the middle of its work.

The machine is whole afterwards, and the leaf true.
"""

import signal
import subprocess
from collections.abc import Iterator

import libvirt
import pytest

from lab import ticks
from lab.cluster import Lab, LabOptions
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.counting import assert_counts_without_a_gap
from tests.cluster.plain import Plain, files_below, timestamp
from tests.conftest import ClusterFactory
from tests.faults.test_agent_killed import STEPS, agent

MERGE_LINES, RETAIN_LINES = range(6), range(0, 36, 5)


@pytest.fixture(scope="module")
def served(cluster: ClusterFactory) -> Iterator[Lab]:
    lab = cluster(LabOptions(nodes=1, machines=0, agents=True))
    yield lab
    lab.down()


@pytest.fixture
def machine(served: Lab) -> Iterator[Machine]:
    machine = served.add_machine(MachineSpec(content_mib=24))
    Plain(served).add_backup_subtree(machine.name, sstVirtualizationBandwidthMerge="8")
    yield machine
    domain = machine.node.domain(machine.name)
    if domain.isActive():
        domain.destroy()


def journal_says(machine: Machine, word: str) -> bool:
    return any(word in path.read_text() for path in (machine.node.state / "journal").glob("*.journal"))


def test_the_directory_dies_while_the_machine_stands_still_and_hears_of_it_later(served: Lab, machine: Machine) -> None:
    plain, leaf = Plain(served), timestamp()
    plain.add_leaf(machine.name, leaf)
    plain.ask(machine.name, leaf, "snapshot")
    until("the agent to begin the save", lambda: journal_says(machine, '"save"'), 30)
    served.kill_directory()
    until("a result in the journal", lambda: journal_says(machine, '"result"'), 60)
    assert_counts_without_a_gap(served, machine)
    served.start_directory()
    assert plain.wait(machine.name, leaf, "snapshotted")["sstProvisioningMode"] == ["snapshotted"]
    plain.step(machine.name, leaf, "merge", "merged")
    plain.step(machine.name, leaf, "retain", "retained")
    until("the journals to go", lambda: not files_below(machine.node.state / "journal"), 10)


def test_libvirt_dies_while_it_saves_and_the_machine_counts_on(served: Lab, machine: Machine) -> None:
    plain, leaf = Plain(served), timestamp()
    plain.add_leaf(machine.name, leaf)
    plain.ask(machine.name, leaf, "snapshot")
    until("the agent to begin the save", lambda: journal_says(machine, '"save"'), 30)
    machine.node.kill_libvirtd()
    machine.node.restart_libvirtd()
    entry = plain.wait(machine.name, leaf, "snapshotted")
    until("the machine to run", lambda: machine.node.domain(machine.name).state()[0] == 1, 60)
    assert_counts_without_a_gap(served, machine)
    if entry["sstProvisioningMode"] == ["snapshotted"]:
        plain.step(machine.name, leaf, "merge", "merged")
        plain.step(machine.name, leaf, "retain", "retained")
        sets.assert_digests(sets.directory_of(machine, leaf))
    sets.assert_whole(machine.disks[0])
    assert files_below(machine.node.retain) == []


def snapshotted(served: Lab, machine: Machine) -> tuple[Plain, str]:
    plain, leaf = Plain(served), timestamp()
    plain.add_leaf(machine.name, leaf)
    plain.step(machine.name, leaf, "snapshot", "snapshotted")
    return plain, leaf


def test_libvirt_dies_in_the_merge_and_the_pull_is_joined(served: Lab, machine: Machine) -> None:
    plain, leaf = snapshotted(served, machine)
    plain.ask(machine.name, leaf, "merge")
    until("the pull to begin", lambda: machine.node.domain(machine.name).blockJobInfo("vda"), 30)
    machine.node.kill_libvirtd()
    machine.node.restart_libvirtd()
    assert plain.wait(machine.name, leaf, "merged")["sstProvisioningMode"] == ["merged"]
    sets.assert_whole(machine.disks[0])
    assert_counts_without_a_gap(served, machine)
    plain.step(machine.name, leaf, "retain", "retained")
    sets.assert_digests(sets.directory_of(machine, leaf))


def test_qemu_dies_in_the_merge_and_the_image_is_made_whole_without_it(served: Lab, machine: Machine) -> None:
    plain, leaf = snapshotted(served, machine)
    plain.ask(machine.name, leaf, "merge")
    until("the pull to begin", lambda: machine.node.domain(machine.name).blockJobInfo("vda"), 30)
    served.kill_qemu(machine.name)
    assert plain.wait(machine.name, leaf, "merged")["sstProvisioningMode"] == ["merged"]
    sets.assert_whole(machine.disks[0])
    found = subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(machine.disks[0])], check=False, timeout=30)
    assert found.returncode in (0, 3), "sound, but for space that the killed QEMU had taken and not used (3)"
    machine.node.domain(machine.name).create()
    served.wait_for_count(machine.name, 60, 60)
    assert ticks.read_serial(machine.serial).complaints == ()
    plain.step(machine.name, leaf, "retain", "retained")


def test_a_machine_switched_off_by_its_admin_before_the_merge_is_merged_off(served: Lab, machine: Machine) -> None:
    plain, leaf = snapshotted(served, machine)
    machine.node.domain(machine.name).destroy()
    plain.step(machine.name, leaf, "merge", "merged")
    assert machine.node.domain(machine.name).state()[0] == libvirt.VIR_DOMAIN_SHUTOFF
    sets.assert_whole(machine.disks[0])
    plain.step(machine.name, leaf, "retain", "retained")
    sets.assert_digests(sets.directory_of(machine, leaf))


def test_a_pull_aborted_by_hand_is_begun_again(served: Lab, machine: Machine) -> None:
    plain, leaf = snapshotted(served, machine)
    plain.ask(machine.name, leaf, "merge")
    domain = machine.node.domain(machine.name)
    until("the pull to begin", lambda: domain.blockJobInfo("vda"), 30)
    domain.blockJobAbort("vda")
    assert plain.wait(machine.name, leaf, "merged")["sstProvisioningMode"] == ["merged"]
    sets.assert_whole(machine.disks[0])
    assert_counts_without_a_gap(served, machine)


def test_a_leaf_deleted_in_the_middle_leaves_a_machine_that_counts(served: Lab, machine: Machine) -> None:
    plain, leaf = Plain(served), timestamp()
    plain.add_leaf(machine.name, leaf)
    plain.ask(machine.name, leaf, "snapshot")
    until("the agent to begin the save", lambda: journal_says(machine, '"save"'), 30)
    plain.delete_tree(plain.leaf_dn(machine.name, leaf))
    until("the journal to go", lambda: not files_below(machine.node.state / "journal"), 60)
    assert_counts_without_a_gap(served, machine)
    later = plain.back_up(machine.name)
    sets.assert_digests(sets.directory_of(machine, later))
    assert_counts_without_a_gap(served, machine)


def test_a_merge_that_was_never_done_is_done_by_the_next_backup(served: Lab, machine: Machine) -> None:
    plain, forgotten = snapshotted(served, machine)
    later = plain.back_up(machine.name, timestamp(1))
    sets.assert_digests(sets.directory_of(machine, later))
    assert_counts_without_a_gap(served, machine)
    plain.step(machine.name, forgotten, "merge", "merged")
    plain.step(machine.name, forgotten, "retain", "retained")
    sets.assert_digests(sets.directory_of(machine, forgotten))


def test_retain_before_merge_is_refused_and_the_live_image_keeps_its_base(served: Lab, machine: Machine) -> None:
    plain, leaf = snapshotted(served, machine)
    plain.ask(machine.name, leaf, "retain")
    entry = plain.wait(machine.name, leaf, "retained")
    assert entry["sstProvisioningReturnValue"] == ["104"], entry
    plain.modify(plain.leaf_dn(machine.name, leaf), "replace sstProvisioningReturnValue 0")
    plain.step(machine.name, leaf, "merge", "merged")
    plain.step(machine.name, leaf, "retain", "retained")
    sets.assert_digests(sets.directory_of(machine, leaf))
    assert_counts_without_a_gap(served, machine)


def test_a_snapshot_asked_for_again_on_a_finished_leaf_is_refused(served: Lab, machine: Machine) -> None:
    plain = Plain(served)
    leaf = plain.back_up(machine.name)
    plain.ask(machine.name, leaf, "snapshot")
    assert plain.wait(machine.name, leaf, "snapshotted")["sstProvisioningReturnValue"] == ["18"]
    sets.assert_digests(sets.directory_of(machine, leaf))
    assert_counts_without_a_gap(served, machine)


def test_old_memory_is_never_restored_onto_disks_that_went_on(cluster: ClusterFactory) -> None:
    """The guest ran on after its snapshot and was switched off; then the snapshot has to be taken back."""
    lab = cluster(LabOptions(nodes=1, machines=0))
    machine = lab.add_machine(MachineSpec())
    plain, leaf = Plain(lab), timestamp()
    plain.add_leaf(machine.name, leaf)
    plain.ask(machine.name, leaf, "snapshot")
    after_resume = 4 * (STEPS.index("resume") + 1) - 1
    assert agent(machine, after_resume) == -signal.SIGKILL
    lab.wait_for_count(machine.name, 100, 60)
    newest = ticks.last_count(machine.serial)
    machine.node.domain(machine.name).destroy()
    assert agent(machine, refuse="description") == 0
    entry = plain.leaf(machine.name, leaf)
    assert "refused by the test" in entry["vmkeepMessage"][0]
    assert machine.node.domain(machine.name).state()[0] == libvirt.VIR_DOMAIN_SHUTOFF
    sets.assert_whole(machine.disks[0])
    assert ticks.newest_on_disk(machine.disks[0]) >= newest, "what the guest wrote after the snapshot is there"
    assert files_below(machine.node.retain) == []
    assert files_below(machine.node.ram) == []
    lab.down()


def test_an_agent_killed_around_every_line_of_merge_and_retain_ends_the_same(
    cluster: ClusterFactory, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--all-faults"):
        pytest.skip("with --all-faults; killed in every mode in test_matrix, after everything in test_killed_twice")
    lab = cluster(LabOptions(nodes=1, machines=0))
    machine = lab.add_machine(MachineSpec(disks=2))
    plain = Plain(lab)
    for merge_line, retain_line in zip([*MERGE_LINES, 7, 9], RETAIN_LINES, strict=True):
        leaf = timestamp()
        plain.add_leaf(machine.name, leaf)
        plain.ask(machine.name, leaf, "snapshot")
        assert agent(machine) == 0
        for mode, line, done in (("merge", merge_line, "merged"), ("retain", retain_line, "retained")):
            plain.ask(machine.name, leaf, mode)
            assert agent(machine, line) == -signal.SIGKILL, (mode, line)
            assert agent(machine) == 0
            entry = plain.leaf(machine.name, leaf)
            assert entry["sstProvisioningMode"] == [done], (mode, line, entry.get("vmkeepMessage"))
        sets.assert_digests(sets.directory_of(machine, leaf))
        assert files_below(machine.node.retain) == []
        assert_counts_without_a_gap(lab, machine)
    lab.down()
