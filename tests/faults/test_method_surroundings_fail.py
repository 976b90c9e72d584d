"""What a backup by live or disk stands on is taken away in its middle: libvirt, the room under an overlay, its notes.

The machine is whole afterwards and so are its disks, the leaf is true, and the next backup is made.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from lab import guest_agent, ticks
from lab.cluster import Lab, LabOptions
from lab.hypervisor import NodeOptions
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.counting import assert_runs_over_its_own_images
from tests.cluster.plain import Plain, files_below, timestamp
from tests.cluster.test_method_freezing import answer_limit, answers
from tests.cluster.test_methods import with_method
from tests.conftest import ClusterFactory

QUICKLY = 0.001


@dataclass(frozen=True)
class Backed:
    """A machine that counts, and one backup of it in the making."""

    lab: Lab
    machine: Machine
    leaf: str

    @property
    def plain(self) -> Plain:
        return Plain(self.lab)

    @property
    def overlay(self) -> Path:
        [disk] = self.machine.disks
        return disk.with_name(f".{disk.name}.{self.leaf}")

    def ask(self, mode: str) -> None:
        self.plain.ask(self.machine.name, self.leaf, mode)

    def wait(self, mode: str) -> dict[str, list[str]]:
        return self.plain.wait(self.machine.name, self.leaf, mode)

    def step(self, mode: str, done: str) -> None:
        self.plain.step(self.machine.name, self.leaf, mode, done)

    def change_plan(self, *changes: str) -> None:
        self.plain.modify(self.lab.tree.machine_plan(self.machine.name), *changes)

    def kill_libvirt_when(self, what: str, is_so: Callable[[], object]) -> None:
        until(what, is_so, 30, QUICKLY)
        self.machine.node.kill_libvirtd()
        self.machine.node.restart_libvirtd()

    def journal_says(self, step: str) -> bool:
        folder = self.machine.node.state / "journal"
        return any(f'"began","step":"{step}"' in path.read_text() for path in folder.glob("*.journal"))

    def finish(self) -> None:
        """Retain what is merged: a set, and nothing else."""
        self.step("retain", "retained")
        self.plain.finish(self.machine.name, self.leaf)
        sets.assert_digests(sets.directory_of(self.machine, self.leaf))
        self.assert_whole()

    def assert_whole(self) -> None:
        """It counts on without a gap over its own image, and nothing is left of what it wrote to meanwhile."""
        machine = self.machine
        assert_runs_over_its_own_images(self.lab, machine)
        assert [path.name for path in machine.disks[0].parent.iterdir() if self.leaf in path.name] == []
        assert files_below(machine.node.retain) == []
        assert files_below(machine.node.ram) == []
        assert files_below(machine.node.state / "journal") == []

    def assert_next_is_made(self) -> None:
        later = self.plain.back_up(self.machine.name, timestamp(1))
        sets.assert_digests(sets.directory_of(self.machine, later))
        self.assert_whole()
        newest = ticks.last_count(self.machine.serial)
        self.machine.node.domain(self.machine.name).destroy()
        assert ticks.newest_on_disk(self.machine.disks[0]) >= newest, "what it had written is on its disk"


@pytest.fixture(scope="module")
def served(cluster: ClusterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Images and retain directory on a small filesystem of their own, the backup directory on another."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "backup"
    options = NodeOptions(store_mib=768, backup=elsewhere)
    lab = cluster(LabOptions(nodes=1, machines=0, agents=True, node=options))
    yield lab
    lab.down()


@pytest.fixture
def method() -> str:
    return "live"


@pytest.fixture
def spec() -> MachineSpec:
    return MachineSpec(content_mib=4)


@pytest.fixture
def backed(served: Lab, method: str, spec: MachineSpec) -> Iterator[Backed]:
    """A backup that is initialized."""
    machine = served.add_machine(spec)
    plain, leaf = Plain(served), timestamp()
    with_method(plain, machine, method)
    served.wait_for_count(machine.name, 30)
    plain.add_leaf(machine.name, leaf)
    yield Backed(served, machine, leaf)
    domain = machine.node.domain(machine.name)
    if domain.isActive():
        domain.destroy()


@pytest.fixture
def frozen(backed: Backed) -> Backed:
    """One whose machine writes to its overlay."""
    backed.step("snapshot", "snapshotted")
    assert backed.overlay.exists()
    return backed


# libvirt


@pytest.mark.parametrize("method", ["live", "disk"])
def test_libvirt_dies_while_the_machine_is_being_frozen(backed: Backed, method: str) -> None:
    backed.ask("snapshot")
    if method == "live":
        memory = backed.machine.node.ram / f"{backed.machine.name}.state.{backed.leaf}"
        backed.kill_libvirt_when("memory to be written", lambda: memory.exists() and memory.stat().st_size > 1 << 20)
    else:
        backed.kill_libvirt_when("the freeze to begin", lambda: backed.journal_says("freeze"))
    entry = backed.wait("snapshotted")
    if entry["sstProvisioningMode"] == ["snapshotted"]:
        backed.step("merge", "merged")
        backed.finish()
    else:
        assert entry["vmkeepMessage"][0].startswith(f"{backed.machine.name}: could not freeze"), entry
        backed.assert_whole()
    backed.assert_next_is_made()


def test_libvirt_dies_while_images_are_copied(frozen: Backed) -> None:
    frozen.change_plan("add vmkeepBandwidthCopy 2")
    frozen.ask("merge")
    place = sets.directory_of(frozen.machine, frozen.leaf)
    frozen.kill_libvirt_when("a copy to be under way", lambda: list(place.glob("*.partial")) if place.exists() else [])
    assert frozen.wait("merged")["sstProvisioningMode"] == ["merged"]
    frozen.change_plan("delete vmkeepBandwidthCopy")
    frozen.finish()
    frozen.assert_next_is_made()


def test_libvirt_dies_while_an_overlay_is_written_back(frozen: Backed) -> None:
    frozen.change_plan("replace sstVirtualizationBandwidthMerge 1")
    frozen.lab.wait_for_count(frozen.machine.name, 300, 120)  # so that there is something to write
    domain = frozen.machine.node.domain(frozen.machine.name)
    frozen.ask("merge")
    frozen.kill_libvirt_when("the commit to begin", lambda: domain.blockJobInfo("vda"))
    assert frozen.wait("merged")["sstProvisioningMode"] == ["merged"]
    frozen.finish()
    frozen.assert_next_is_made()


def test_libvirt_dies_in_the_pivot(frozen: Backed) -> None:
    mark = frozen.overlay.with_name(f"{frozen.overlay.name}.written-back")
    frozen.ask("merge")
    frozen.kill_libvirt_when("the pivot", mark.exists)
    assert frozen.wait("merged")["sstProvisioningMode"] == ["merged"]
    frozen.finish()
    frozen.assert_next_is_made()


@pytest.mark.parametrize(("method", "spec"), [("disk", MachineSpec(agent=True))])
def test_libvirt_dies_while_the_guests_filesystems_are_being_frozen(backed: Backed) -> None:
    """It has asked, and the agent inside freezes when nobody waits for it any more."""
    machine = backed.machine
    guest_agent.wait_ready(machine)
    stop = "agent=$(/bin/busybox cat /run/qemu-ga.pid); /bin/busybox usleep 300000; /bin/busybox kill -STOP $agent; "
    guest_agent.start(machine, f"{stop} /bin/busybox usleep 6000000; /bin/busybox kill -CONT $agent")
    until("the agent inside to fall silent", lambda: not answers(machine), 10)
    backed.ask("snapshot")
    backed.kill_libvirt_when("the freeze to be asked for", lambda: answer_limit(machine) > 0)
    entry = backed.wait("snapshotted")
    assert entry["sstProvisioningMode"] == ["snapshotted"], entry
    newest = ticks.newest_file_write(machine.serial)
    until("the guest to write to its filesystem", lambda: ticks.newest_file_write(machine.serial) > newest + 2, 30)
    assert not guest_agent.is_frozen(machine)
    backed.step("merge", "merged")
    backed.finish()
    folder = sets.directory_of(machine, backed.leaf)
    [image] = [folder / file["name"] for file in sets.manifest(folder)["files"] if file["role"] == "disk"]
    worth = backed.plain.leaf(machine.name, backed.leaf)["vmkeepConsistency"]
    assert worth == ["crash"] or not ticks.needs_recovery(image), "it is not called better than it is known to be"
    assert answer_limit(machine) == -2, "others may wait for the agent inside as long as before"
    backed.assert_next_is_made()


# room


def fill(folder: Path) -> Path:
    """Take all the room there is."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        for piece in (16 << 20, 1 << 20, 1 << 16, 1 << 12):
            while True:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), piece)
                except OSError:
                    break
    return filler


def is_halted(machine: Machine) -> bool:
    state, why = machine.node.domain(machine.name).state()
    return (state, why) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)


def test_a_machine_whose_overlay_found_no_room_runs_on_over_its_own_image(frozen: Backed) -> None:
    filler = fill(frozen.machine.node.store)
    until("the machine to be halted", lambda: is_halted(frozen.machine), 60)
    filler.unlink()
    frozen.step("merge", "merged")
    frozen.finish()
    frozen.assert_next_is_made()


def test_a_disk_that_is_full_when_images_are_copied_ends_that_and_the_machine_runs_on(frozen: Backed) -> None:
    filler = fill(frozen.machine.node.store)
    until("the machine to be halted", lambda: is_halted(frozen.machine), 60)
    frozen.ask("merge")
    until("the copying to be given up", lambda: "failed" in said_in_journals(frozen.machine), 30)
    filler.unlink()
    entry = frozen.wait("merged")
    assert entry["sstProvisioningMode"] == ["merging"], entry
    assert "make room" in entry["vmkeepMessage"][0]
    assert "could not be put back" not in entry["vmkeepMessage"][0]
    assert not sets.directory_of(frozen.machine, frozen.leaf).exists()
    frozen.assert_whole()
    frozen.assert_next_is_made()


def said_in_journals(machine: Machine) -> str:
    return " ".join(path.read_text() for path in (machine.node.state / "journal").glob("*.journal"))


# notes


def test_a_merge_whose_notes_are_gone_is_refused_and_the_machine_is_whole(frozen: Backed) -> None:
    folder = frozen.machine.node.retain
    [notes] = [folder / name for name in files_below(folder) if name.endswith(".manifest.making")]
    notes.unlink()
    frozen.ask("merge")
    entry = frozen.wait("merged")
    assert (entry["sstProvisioningMode"], entry["sstProvisioningReturnValue"]) == (["merging"], ["37"])
    assert entry["vmkeepMessage"][0].startswith(f"{frozen.machine.name}: the backup {frozen.leaf} cannot be finished")
    assert "back it up again" in entry["vmkeepMessage"][0]
    for name in files_below(folder):
        (folder / name).unlink()  # nothing else knows what they are
    frozen.assert_whole()
    frozen.assert_next_is_made()
