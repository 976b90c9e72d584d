"""Plain LDAP clients drive whole backups, without any controller, for machines of every kind."""

import stat
import subprocess

import libvirt
import pytest

from lab import ticks
from lab.cluster import Lab
from lab.machines import Machine, MachineSpec
from tests.cluster import sets
from tests.cluster.plain import Plain, files_below

STAND_IN = b"Machine is not runnung, no state file"
KINDS = {
    "running, one disk": MachineSpec(),
    "running, two disks": MachineSpec(disks=2),
    "running, equal basenames": MachineSpec(disks=2, equal_basenames=True),
    "paused": MachineSpec(state="paused"),
    "off": MachineSpec(kind="bios", state="off", content_mib=2),
    "off, two disks": MachineSpec(kind="bios", state="off", disks=2, equal_basenames=True, content_mib=2),
    "firmware with NVRAM": MachineSpec(kind="uefi"),
    "firmware with NVRAM and vTPM": MachineSpec(kind="uefi", tpm=True),
}


def power(machine: Machine) -> int:
    return machine.node.domain(machine.name).state()[0]


def assert_nothing_left(machine: Machine, leaf: str) -> None:
    mine = [name for name in files_below(machine.node.retain) if f"/{machine.name}/" in f"/{name}"]
    assert mine == []
    assert [name for name in files_below(machine.node.ram) if machine.name in name] == []
    assert [path.name for disk in machine.disks for path in disk.parent.iterdir() if leaf in path.name] == []
    for disk in machine.disks:
        sets.assert_whole(disk)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backup_leaves_a_complete_set_and_the_machine_as_it_was(kind: str, agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(KINDS[kind])
    before = power(machine)
    content_before = [sets.image_info(disk)["virtual-size"] for disk in machine.disks]
    leaf = plain.back_up(machine.name)

    folder = sets.directory_of(machine, leaf)
    sets.assert_digests(folder)
    told = sets.manifest(folder)
    is_off = KINDS[kind].state == "off"
    assert told["machine"] == machine.name
    assert told["uuid"] == machine.node.domain(machine.name).UUIDString()
    assert told["consistency"] == ("off" if is_off else "state")
    assert [file["original_path"] for file in told["files"] if file["role"] == "disk"] == [
        str(d) for d in machine.disks
    ]
    names = {path.name for path in folder.iterdir()}
    assert {f"{machine.name}.{suffix}.{leaf}" for suffix in ("state", "xml", "ldif")} <= names
    assert sum(name.endswith(f".qcow2.{leaf}") for name in names) == len(machine.disks)
    assert stat.S_IMODE((folder / f"{machine.name}.state.{leaf}").stat().st_mode) == 0o600

    assert power(machine) == before
    assert_nothing_left(machine, leaf)
    assert [sets.image_info(disk)["virtual-size"] for disk in machine.disks] == content_before
    assert plain.leaf(machine.name, leaf)["sstProvisioningReturnValue"] == ["0"]


def test_the_guest_counts_on_and_reads_its_old_data_through_the_new_image(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(disks=2))
    plain.back_up(machine.name)
    checked = len(ticks.read_serial(machine.serial).checks)
    agents.wait_for_count(machine.name, 100)
    log = ticks.read_serial(machine.serial)
    assert log.missing == []
    assert log.complaints == ()
    assert len(log.checks) > checked, "the guest read its pattern again after the backup"


def test_a_machine_that_is_off_gets_the_stand_in_state(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(kind="bios", state="off"))
    leaf = plain.back_up(machine.name)
    state = sets.directory_of(machine, leaf) / f"{machine.name}.state.{leaf}"
    assert state.read_bytes() == STAND_IN
    assert power(machine) == libvirt.VIR_DOMAIN_SHUTOFF


def test_the_saved_disk_of_a_machine_that_is_off_is_the_disk_as_it_was(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(kind="bios", state="off", content_mib=3))
    before = machine.disks[0].read_bytes()
    leaf = plain.back_up(machine.name)
    kept = sets.directory_of(machine, leaf) / f"{machine.disks[0].name}.{leaf}"
    assert kept.read_bytes() == before


def test_nvram_and_vtpm_state_are_in_the_set_as_they_are(agents: Lab, plain: Plain) -> None:
    """Off, because a TPM that runs on counts in its own state."""
    machine = agents.add_machine(MachineSpec(kind="uefi", tpm=True))
    machine.node.domain(machine.name).destroy()
    leaf = plain.back_up(machine.name)
    folder = sets.directory_of(machine, leaf)
    roles = {file["role"]: folder / file["name"] for file in sets.manifest(folder)["files"]}
    assert roles["nvram"].read_bytes() == machine.nvram.read_bytes()
    tpm = machine.node.libvirt_state / "swtpm" / machine.uuid / "tpm2" / "tpm2-00.permall"
    assert roles["tpm"].read_bytes() == tpm.read_bytes()
    assert stat.S_IMODE(roles["tpm"].stat().st_mode) == 0o600


def test_leaf_says_how_long_it_took_and_how_long_the_machine_stood_still(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec())
    with ticks.Follower(machine.serial) as follower:
        leaf = plain.back_up(machine.name)
        agents.wait_for_count(machine.name, 20)
    times = dict(value.split(": ") for value in plain.leaf(machine.name, leaf)["sstProvisioningExecutionTime"])
    assert {"snapshot", "merge", "retain", "downtime"} == set(times)
    assert float(times["downtime"]) <= float(times["snapshot"])
    assert abs(float(times["downtime"]) - follower.widest_gap()) < 0.5


def test_without_a_ram_disk_the_memory_goes_to_retain_and_the_leaf_says_so(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(kind="bios"))
    missing = machine.node.folder / "no-such-ram-disk"
    plain.add_backup_subtree(machine.name, sstBackupRamDiskLocation=f"file://{missing}")
    leaf = "20260101T000000Z"
    plain.add_leaf(machine.name, leaf)
    entry = plain.step(machine.name, leaf, "snapshot", "snapshotted")
    assert str(missing) in entry["vmkeepMessage"][0]
    plain.step(machine.name, leaf, "merge", "merged")
    plain.step(machine.name, leaf, "retain", "retained")
    sets.assert_digests(sets.directory_of(machine, leaf))


def test_owner_group_and_permission_are_those_of_the_plan(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(kind="bios", state="off"))
    plain.add_backup_subtree(
        machine.name,
        sstVirtualizationDiskImageOwner="daemon",
        sstVirtualizationDiskImageGroup="adm",
        sstVirtualizationDiskImagePermission="640",
        sstVirtualizationDiskImageDirectoryOwner="daemon",
        sstVirtualizationDiskImageDirectoryGroup="adm",
        sstVirtualizationDiskImageDirectoryPermission="750",
    )
    leaf = plain.back_up(machine.name)
    folder = sets.directory_of(machine, leaf)
    for path, mode in ((folder, 0o750), (folder / f"{machine.disks[0].name}.{leaf}", 0o640), (machine.disks[0], 0o640)):
        assert (path.owner(), path.group(), stat.S_IMODE(path.stat().st_mode)) == ("daemon", "adm", mode), path


def test_no_agent_removes_an_older_set_by_itself(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(kind="bios", state="off"))
    plain.add_backup_subtree(machine.name, sstBackupNumberOfIterations="1")
    leaves = [f"2026010{day}T000000Z" for day in range(1, 3)]
    for leaf in leaves:
        plain.back_up(machine.name, leaf)
    kept = sorted(path.name for path in sets.directory_of(machine, leaves[0]).parent.iterdir())
    assert kept == leaves


def test_the_merge_keeps_to_the_bandwidth_of_the_plan(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(content_mib=24))
    plain.add_backup_subtree(machine.name, sstVirtualizationBandwidthMerge="8")
    leaf = "20260101T000000Z"
    plain.add_leaf(machine.name, leaf)
    plain.step(machine.name, leaf, "snapshot", "snapshotted")
    entry = plain.step(machine.name, leaf, "merge", "merged")
    times = dict(value.split(": ") for value in entry["sstProvisioningExecutionTime"])
    assert float(times["merge"]) > 24 / 8 * 0.6
    plain.step(machine.name, leaf, "retain", "retained")


def test_a_backup_root_on_another_filesystem_gets_a_copy_and_nothing_stays_in_retain(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(disks=2))
    other = machine.node.folder / "other"
    other.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", str(other)], check=True)
    try:
        plain.add_backup_subtree(machine.name, sstBackupRootDirectory=f"file://{other}")
        leaf = plain.back_up(machine.name)
        vmtype, pool = machine.disks[0].relative_to(machine.node.images).parts[:2]
        sets.assert_digests(other / vmtype / pool / machine.name / leaf)
        assert_nothing_left(machine, leaf)
    finally:
        subprocess.run(["umount", str(other)], check=True)
