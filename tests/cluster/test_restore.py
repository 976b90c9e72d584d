"""Plain LDAP clients drive whole restores, without any controller, with the edits that are shipped."""

import itertools
import shutil
import subprocess
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from lab import ticks
from lab.cluster import Lab
from lab.filesystems import own_filesystem
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.plain import Plain, files_below, timestamp

KINDS = {
    "running, one disk": MachineSpec(),
    "running, two disks": MachineSpec(disks=2),
    "firmware with NVRAM and vTPM": MachineSpec(kind="uefi", tpm=True),
    "paused, two disks": MachineSpec(state="paused", disks=2),
    "off": MachineSpec(kind="bios", state="off", content_mib=2),
}


def power(machine: Machine) -> int:
    return machine.node.domain(machine.name).state()[0]


def definition(machine: Machine) -> bytes:
    """What libvirt would start, without what it fills in by itself when a machine runs."""
    root = etree.fromstring(machine.node.domain(machine.name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    for element in (*root.findall("resource"), *root.findall("seclabel")):
        root.remove(element)
    etree.indent(root)
    return etree.tostring(root, method="c14n")


def left_in_retain(machine: Machine) -> list[str]:
    return [name for name in files_below(machine.node.retain) if f"/{machine.name}/" in f"/{name}"]


def assert_cleared(machine: Machine) -> None:
    until(f"the retain directory of {machine.name} to be empty", lambda: not left_in_retain(machine), 60)


def same_content(one: Path, other: Path) -> bool:
    command = ["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "qcow2", str(one), str(other)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def back_up_with_a_copy(plain: Plain, machine: Machine, folder: Path) -> tuple[str, list[Path]]:
    """A backup, and an independent copy of every disk, taken while the image of its instant lies frozen in retain."""
    leaf = timestamp()
    plain.add_leaf(machine.name, leaf)
    plain.step(machine.name, leaf, "snapshot", "snapshotted")
    frozen = [machine.node.retain / name for name in left_in_retain(machine) if name.endswith(".qcow2")]
    by_name = {path.name: Path(shutil.copy(path, folder / path.name)) for path in frozen}
    for mode, done in (("merge", "merged"), ("retain", "retained")):
        plain.step(machine.name, leaf, mode, done)
    plain.finish(machine.name, leaf)
    return leaf, [by_name[disk.name] for disk in machine.disks]


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_is_back_as_it_was_at_its_instant(kind: str, agents: Lab, plain: Plain, tmp_path: Path) -> None:
    spec = KINDS[kind]
    machine = agents.add_machine(spec)
    counts = spec.kind == "linux" and spec.state == "running"
    if counts:
        agents.wait_for_count(machine.name, 50)
    before, described = power(machine), definition(machine)
    leaf, copies = back_up_with_a_copy(plain, machine, tmp_path)
    at_instant = [ticks.newest_on_disk(copy) for copy in copies]
    if counts:
        agents.wait_for_count(machine.name, 120)
    offset = machine.serial.stat().st_size if machine.serial.exists() else 0

    plain.restore(machine.name, leaf)

    assert power(machine) == before
    assert definition(machine) == described
    if counts:
        counted = ticks.counts_since(machine.serial, offset)
        back = next(after for count, after in itertools.pairwise(counted) if after < count)
        assert back in (at_instant[0], at_instant[0] + 1), "memory and disk are of one instant"
        agents.wait_for_count(machine.name, 60)
        assert " BAD" not in machine.serial.read_text(errors="replace")[offset:]
    else:
        assert all(same_content(disk, copy) for disk, copy in zip(machine.disks, copies, strict=True))
    for disk in machine.disks:
        sets.assert_whole(disk)
    assert_cleared(machine)
    sets.assert_digests(sets.directory_of(machine, leaf))
    plain.back_up(machine.name)


def test_hours_of_later_writes_are_gone(agents: Lab, plain: Plain) -> None:
    """Every byte of both disks is written over meanwhile."""
    machine = agents.add_machine(MachineSpec(disks=2))
    agents.wait_for_count(machine.name, 50)
    leaf = plain.back_up(machine.name)
    folder = sets.directory_of(machine, leaf)
    saved = [path for path in sorted(folder.iterdir()) if ".qcow2." in path.name]
    at_instant = max(ticks.newest_on_disk(path) for path in saved)
    domain = machine.node.domain(machine.name)
    domain.destroy()
    for disk in machine.disks:
        size = sets.image_info(disk)["virtual-size"]
        command = ["qemu-io", "-f", "qcow2", "-c", f"write -P 0x5a 0 {size}", str(disk)]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
    domain.create()
    offset = machine.serial.stat().st_size

    plain.restore(machine.name, leaf)

    agents.wait_for_count(machine.name, 120)
    counted = ticks.counts_since(machine.serial, offset)
    assert {at_instant, at_instant + 1} & set(counted)
    log = machine.serial.read_text(errors="replace")[offset:]
    after = log[max(log.rfind(f"T {at_instant} "), log.rfind(f"T {at_instant + 1} ")) :]
    assert " BAD" not in after
    assert "V " in after, "the guest read its pattern on the restored disks"


def test_a_machine_that_was_off_is_started_where_its_plan_says_so(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(kind="bios", state="off"))
    plain.add_backup_subtree(machine.name, sstVirtualizationVirtualMachineForceStart="TRUE")
    restored = plain.restore(machine.name, plain.back_up(machine.name))
    assert power(machine) == libvirt.VIR_DOMAIN_RUNNING
    assert "it is started (ForceStart)" in restored["vmkeepMessage"][0]
    assert_cleared(machine)


def test_without_its_memory_a_machine_is_started_from_the_disks_of_its_instant(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec())
    agents.wait_for_count(machine.name, 200)
    leaf = plain.back_up(machine.name)
    folder = sets.directory_of(machine, leaf)
    at_instant = max(ticks.newest_on_disk(path) for path in folder.iterdir() if ".qcow2." in path.name)
    offset = machine.serial.stat().st_size
    plain.modify(plain.leaf_dn(machine.name, leaf), "replace sstRestoreVMWithoutState TRUE")
    restored = plain.restore(machine.name, leaf)
    assert "sstRestoreVMWithoutState is TRUE" in restored["vmkeepMessage"][0]
    agents.wait_for_count(machine.name, 20)
    counted = ticks.counts_since(machine.serial, offset)
    back = next(after for count, after in itertools.pairwise(counted) if after < count)
    assert back == at_instant + 1
    clocks = {count.seq: count.monotonic for count in ticks.read_serial(machine.serial).counts}
    assert clocks[back] < clocks[at_instant], "its clock began anew: it was booted"
    assert " BAD" not in machine.serial.read_text(errors="replace")[offset:]


def test_without_room_for_the_disks_nothing_is_touched(agents: Lab, plain: Plain) -> None:
    """Off, because libvirt's own namespace does not see what is mounted later."""
    node = next(iter(agents.nodes.values()))
    with own_filesystem(node.images / "vm-dynamic", 96) as small:
        retain = small.folder / "retain"
        retain.mkdir()
        machine = agents.add_machine(
            MachineSpec(kind="bios", state="off", content_mib=24, storage="vm-dynamic"), node=node.name
        )
        plain.add_backup_subtree(machine.name, sstBackupRetainDirectory=f"file://{retain}")
        leaf = plain.back_up(machine.name)
        inode = machine.disks[0].stat().st_ino
        plain.edit_and_wait("restore-small-files", machine.name, leaf, "unretainedSmallFiles")
        free = shutil.disk_usage(small.folder).free
        (small.folder / "filler").write_bytes(bytes(free - (16 << 20)))
        plain.edit("restore-large-files", machine.name, leaf)
        entry = plain.wait(machine.name, leaf, "unretainedLargeFiles")
        assert entry["sstProvisioningReturnValue"] == ["47"]
        assert str(retain) in entry["vmkeepMessage"][0]
        assert machine.disks[0].stat().st_ino == inode
        plain.modify(plain.leaf_dn(machine.name, leaf), "replace sstProvisioningReturnValue 0")
        plain.finish(machine.name, leaf)
        until("retain to be empty", lambda: files_below(retain) == [], 60)
        machine.node.domain(machine.name).undefine()
        plain.delete_tree(plain.machine_dn(machine.name))
