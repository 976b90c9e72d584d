"""What a restore stands on is taken away in its middle; the machine ends as its set has it, or as it was."""

import signal
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from lab.cluster import Lab, LabOptions
from lab.filesystems import own_filesystem
from lab.machines import MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.plain import Plain, files_below
from tests.conftest import ClusterFactory
from tests.faults.test_agent_killed import agent
from tests.faults.test_restore_killed import LARGE, RESTORE, Kept, back_up, steps_between

RUNNING, OFF = libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_SHUTOFF
BEFORE_GO, AFTER_GO_BEGAN, AFTER_GO = (4 * RESTORE.index("go") + offset for offset in (0, 1, 2))


@pytest.fixture(scope="module")
def lab(cluster: ClusterFactory) -> Iterator[Lab]:
    """A node whose agent runs only where a test starts one."""
    lab = cluster(LabOptions(nodes=1, machines=0))
    yield lab
    lab.down()


@pytest.fixture(scope="module")
def backed_up(lab: Lab) -> Kept:
    machine = lab.add_machine(MachineSpec())
    plain = Plain(lab)
    plain.add_backup_subtree(machine.name, sstBackupNumberOfIterations="90")
    lab.wait_for_count(machine.name, 30)
    return Kept(lab, plain, machine, back_up(plain, machine))


@pytest.fixture
def kept(backed_up: Kept) -> Iterator[Kept]:
    """A machine that runs before; afterwards retain is empty once the leaf has ended, and the set as it was."""
    domain = backed_up.machine.node.domain(backed_up.machine.name)
    if not domain.isActive():
        domain.create()
    backed_up.lab.wait_for_count(backed_up.machine.name, 10)
    backed_up.step("unretainSmallFiles", "unretainedSmallFiles")
    yield backed_up
    if backed_up.entry():
        backed_up.back_out()
    assert agent(backed_up.machine) == 0
    backed_up.assert_clean()
    sets.assert_digests(backed_up.folder)
    for disk in backed_up.machine.disks:
        sets.assert_whole(disk)


@pytest.fixture
def served(kept: Kept) -> Iterator[Kept]:
    """The same, with the large files there and an agent at work."""
    kept.step("unretainLargeFiles", "unretainedLargeFiles")
    kept.lab.start_agent(kept.machine.node.name)
    yield kept
    kept.lab.stop_agent(kept.machine.node.name)


def state_of(kept: Kept) -> int:
    return int(kept.machine.node.domain(kept.machine.name).state()[0])


def begun(kept: Kept, step: str) -> None:
    """Return when the agent has noted that a step begins."""
    folder = kept.machine.node.state / "journal"
    word = f'"began","step":"{step}"'
    until(f"{step} to begin", lambda: any(word in path.read_text() for path in folder.glob("*.journal")), 60, 0.005)


def offset_of(kept: Kept) -> int:
    return kept.machine.serial.stat().st_size


def assert_went_back_once(kept: Kept, offset: int) -> None:
    # Until then the newest count is one of before, which the restored guest has yet to come to.
    until("the guest to count from its instant", lambda: steps_between(kept.counts_from(offset)), 60)
    kept.lab.wait_for_count(kept.machine.name, 30)
    (_, after), *others = steps_between(kept.counts_from(offset))
    assert others == []
    assert after in (kept.at_instant, kept.at_instant + 1)


def assert_went_on(kept: Kept, offset: int) -> None:
    kept.lab.wait_for_count(kept.machine.name, 30)
    assert steps_between(kept.counts_from(offset)) == [], "its memory went on from where it was"


def test_libvirt_dies_while_it_loads_the_set_and_the_machine_is_back_or_as_it_was(served: Kept) -> None:
    offset = offset_of(served)
    served.ask("restore")
    begun(served, "load")
    # Killed while it forks QEMU, libvirt 9.0 takes the machine for one that starts, for ever.
    until("QEMU to be there", lambda: served.machine.node.qemu(served.machine.name), 30, 0.005)
    served.machine.node.kill_libvirtd()
    served.machine.node.restart_libvirtd()
    entry = served.plain.wait(served.machine.name, served.leaf, "restored")
    assert "could not be put back" not in entry.get("vmkeepMessage", [""])[0]
    if entry["sstProvisioningMode"] == ["restored"]:
        assert_went_back_once(served, offset)
    else:
        assert_went_on(served, offset)


def test_the_directory_dies_while_the_files_are_brought_and_hears_of_them_later(kept: Kept) -> None:
    kept.lab.start_agent(kept.machine.node.name)
    kept.ask("unretainLargeFiles")
    folder = kept.machine.node.state / "journal"
    until("the agent to begin", lambda: list(folder.glob("*.journal")), 30, 0.005)
    kept.lab.kill_directory()
    kept.lab.start_directory()
    entry = kept.plain.wait(kept.machine.name, kept.leaf, "unretainedLargeFiles")
    assert entry["sstProvisioningMode"] == ["unretainedLargeFiles"], entry
    kept.lab.stop_agent(kept.machine.node.name)


def test_the_directory_dies_while_the_machine_stands_still_and_hears_of_the_restore_later(served: Kept) -> None:
    offset = offset_of(served)
    served.ask("restore")
    begun(served, "stop")
    served.lab.kill_directory()
    folder = served.machine.node.state / "journal"
    until("a result", lambda: any('"result"' in path.read_text() for path in folder.glob("*.journal")), 60)
    assert_went_back_once(served, offset)
    served.lab.start_directory()
    entry = served.plain.wait(served.machine.name, served.leaf, "restored")
    assert entry["sstProvisioningMode"] == ["restored"], entry


def test_qemu_dies_while_the_restored_machine_is_paused_and_the_machine_is_as_it_was(kept: Kept) -> None:
    kept.step("unretainLargeFiles", "unretainedLargeFiles")
    before, offset = kept.state(), offset_of(kept)
    kept.ask("restore")
    assert agent(kept.machine, BEFORE_GO) == -signal.SIGKILL
    assert state_of(kept) == libvirt.VIR_DOMAIN_PAUSED
    kept.lab.kill_qemu(kept.machine.name)
    assert agent(kept.machine) == 0
    entry = kept.entry()
    assert entry["sstProvisioningReturnValue"] == ["21"], entry
    assert "could not be put back" not in entry["vmkeepMessage"][0]
    assert_went_on(kept, offset)
    assert kept.state() == before


@pytest.mark.parametrize("boundary", [AFTER_GO_BEGAN, AFTER_GO])
def test_a_machine_switched_off_as_it_was_let_go_stays_off_and_never_meets_its_memory_again(
    boundary: int, kept: Kept
) -> None:
    kept.step("unretainLargeFiles", "unretainedLargeFiles")
    kept.ask("restore")
    assert agent(kept.machine, boundary) == -signal.SIGKILL
    kept.machine.node.domain(kept.machine.name).destroy()
    assert agent(kept.machine) == 0
    entry = kept.entry()
    assert entry["sstProvisioningMode"] == ["restored"], entry
    assert "switched off" in entry["vmkeepMessage"][0]
    assert state_of(kept) == OFF


def test_a_machine_started_by_an_admin_while_the_agent_was_dead_keeps_what_it_wrote(kept: Kept) -> None:
    kept.step("unretainLargeFiles", "unretainedLargeFiles")
    kept.ask("restore")
    assert agent(kept.machine, 4 * RESTORE.index("place")) == -signal.SIGKILL
    before = kept.state()
    domain = kept.machine.node.domain(kept.machine.name)
    domain.create()
    kept.lab.wait_for_count(kept.machine.name, 10)
    domain_id = domain.ID()
    assert agent(kept.machine) == 0
    entry = kept.entry()
    assert entry["sstProvisioningReturnValue"] == ["18"], entry
    assert "started by somebody else" in entry["vmkeepMessage"][0]
    assert kept.machine.node.domain(kept.machine.name).ID() == domain_id, "it was left alone"
    assert kept.state() == before


def test_a_leaf_deleted_in_the_middle_leaves_the_machine_restored_and_nothing_behind(lab: Lab, backed_up: Kept) -> None:
    """The last of them: its leaf is gone afterwards."""
    kept = backed_up
    domain = kept.machine.node.domain(kept.machine.name)
    if not domain.isActive():
        domain.create()
    lab.wait_for_count(kept.machine.name, 10)
    kept.step("unretainSmallFiles", "unretainedSmallFiles")
    kept.step("unretainLargeFiles", "unretainedLargeFiles")
    offset = offset_of(kept)
    lab.start_agent(kept.machine.node.name)
    kept.ask("restore")
    begun(kept, "stop")
    kept.plain.delete_tree(kept.plain.leaf_dn(kept.machine.name, kept.leaf))
    until("retain to be empty", lambda: not files_below(kept.machine.node.retain), 60)
    lab.stop_agent(kept.machine.node.name)
    assert_went_back_once(kept, offset)
    assert agent(kept.machine) == 0
    kept.assert_clean()
    sets.assert_digests(kept.folder)


@pytest.fixture
def small(cluster: ClusterFactory) -> Iterator[Kept]:
    """A machine whose images and retain lie on a small filesystem of their own."""
    lab = cluster(LabOptions(nodes=1, machines=0))
    node = next(iter(lab.nodes.values()))
    node.images.rmdir()
    with own_filesystem(node.images, 96):
        (node.images / "retain").mkdir()
        machine = lab.add_machine(MachineSpec(kind="bios", state="off", disks=2, content_mib=8))
        plain = Plain(lab)
        plain.add_backup_subtree(machine.name, sstBackupRetainDirectory=f"file://{node.images}/retain")
        yield Kept(lab, plain, machine, back_up(plain, machine))
    lab.down()


def fill(folder: Path) -> Path:
    """Leave no room on the filesystem of a folder."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1 << 20))
    return filler


def test_a_retain_that_fills_up_while_files_are_brought_keeps_the_small_ones_and_is_tried_again(small: Kept) -> None:
    retain = small.machine.node.images / "retain"
    before = [disk.read_bytes() for disk in small.machine.disks]
    small.step("unretainSmallFiles", "unretainedSmallFiles")
    texts = files_below(retain)
    assert len(texts) == 4
    small.ask("unretainLargeFiles")
    assert agent(small.machine, 4 * LARGE.index("vda") + 2) == -signal.SIGKILL
    filler = fill(retain.parent)
    assert agent(small.machine) == 0
    entry = small.entry()
    assert entry["sstProvisioningReturnValue"] in (["7"], ["8"]), entry
    assert "No space left" in entry["vmkeepMessage"][0]
    assert files_below(retain) == texts
    filler.unlink()
    dn = small.plain.leaf_dn(small.machine.name, small.leaf)
    small.plain.modify(dn, "replace sstProvisioningReturnValue 0")
    small.step("unretainLargeFiles", "unretainedLargeFiles")
    small.step("restore", "restored")
    assert [disk.read_bytes() for disk in small.machine.disks] == before
    small.back_out()
    assert agent(small.machine) == 0
    assert files_below(retain) == []
