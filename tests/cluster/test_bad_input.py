"""Bad input is refused with its return value and a sentence, nothing is changed, and the next machine is served."""

import subprocess

import pytest

from lab.cluster import Lab
from lab.machines import Machine, MachineSpec
from tests.cluster import sets
from tests.cluster.plain import Plain, files_below, timestamp

ROOT, RETAIN, RAM = "sstBackupRootDirectory", "sstBackupRetainDirectory", "sstBackupRamDiskLocation"
OWNER, MODE = "sstVirtualizationDiskImageOwner", "sstVirtualizationDiskImagePermission"
DIRECTORY_GROUP = "sstVirtualizationDiskImageDirectoryGroup"

# attribute, value ({node} is the node's folder), return value, what the sentence has to name
BAD_PLANS = {
    "retain root missing": (RETAIN, "file://{node}/nowhere", 25, "nowhere"),
    "backup root missing": (ROOT, "file://{node}/nowhere", 26, "nowhere"),
    "another protocol": (ROOT, "ftp://backup.example.org/pub", 35, "ftp"),
    "no protocol": (ROOT, "/var/backup", 102, "file:///"),
    "relative path": (RETAIN, "file://retain", 102, "file:///"),
    "path with ..": (RETAIN, "file://{node}/retain/../images", 102, ".."),
    "outside the allowed roots": (RETAIN, "file:///etc", 102, "allowed_roots"),
    "RAM disk outside the allowed roots": (RAM, "file:///dev/shm", 102, "allowed_roots"),
    "permission that is not octal": (MODE, "999", 39, "999"),
    "owner that does not exist": (OWNER, "nobody-of-this-name", 19, "nobody-of-this-name"),
    "directory group that does not exist": (DIRECTORY_GROUP, "no-such-group", 30, "no-such-group"),
    "owner with a line end": (OWNER, "root; rm -rf", 39, "root; rm -rf"),
    "iterations of none": ("sstBackupNumberOfIterations", "0", 39, "'0'"),
}


def fingerprint(machine: Machine) -> list[object]:
    """Everything that must not change: image, inode, power, description."""
    domain = machine.node.domain(machine.name)
    files = [(path.stat().st_ino, path.read_bytes()) for path in machine.disks]
    return [files, domain.state(), domain.XMLDesc(), files_below(machine.node.retain), files_below(machine.node.ram)]


@pytest.fixture(scope="module")
def victim(agents: Lab) -> Machine:
    return agents.add_machine(MachineSpec(kind="bios"))


@pytest.fixture
def without_plan(victim: Machine, plain: Plain) -> Machine:
    plain.delete_tree(plain.lab.tree.machine_plan(victim.name))
    return victim


@pytest.mark.parametrize("case", BAD_PLANS)
def test_a_plan_that_cannot_be_kept_refuses_its_machine(case: str, without_plan: Machine, plain: Plain) -> None:
    attribute, value, code, word = BAD_PLANS[case]
    machine = without_plan
    plain.add_backup_subtree(machine.name, **{attribute: value.format(node=machine.node.folder)})
    before = fingerprint(machine)
    found, message = plain.fail(machine.name)
    assert found == code, message
    assert machine.name in message
    assert word in message
    assert fingerprint(machine) == before


def test_a_cron_field_that_cannot_be_read_refuses_its_machine(without_plan: Machine, plain: Plain) -> None:
    dn = plain.lab.tree.machine_plan(without_plan.name)
    fields = {"Minute": "0", "Hour": "25", "Day": "*", "Month": "*", "DayOfWeek": "*", "Active": "TRUE"}
    plain.add(
        f"dn: {dn}\nobjectClass: organizationalUnit\nobjectClass: sstCronObjectClass\nou: backup\n"
        + "".join(f"sstCron{name}: {value}\n" for name, value in fields.items())
    )
    code, message = plain.fail(without_plan.name)
    assert code == 105
    assert "sstCronHour" in message
    assert "25" in message


def test_disks_that_differ_between_directory_and_libvirt(without_plan: Machine, plain: Plain) -> None:
    disk = f"sstDisk=vda,ou=devices,{plain.machine_dn(without_plan.name)}"
    right = plain.read(disk)["sstSourceFile"][0]
    plain.modify(disk, f"replace sstSourceFile {right}.other")
    before = fingerprint(without_plan)
    code, message = plain.fail(without_plan.name)
    plain.modify(disk, f"replace sstSourceFile {right}")
    assert code == 33
    assert f"{right}.other" in message
    assert fingerprint(without_plan) == before


def test_a_machine_that_libvirt_does_not_know(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(kind="bios", state="off"))
    machine.node.domain(machine.name).undefine()
    code, message = plain.fail(machine.name)
    assert code == 23
    assert machine.name in message


def test_an_image_that_is_an_overlay_already(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(kind="bios", state="off"))
    image = machine.disks[0]
    base = image.with_name("base.qcow2")
    image.rename(base)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(image)], check=True)
    code, message = plain.fail(machine.name)
    assert code == 104
    assert str(base) in message


def test_an_image_that_is_none(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(kind="bios", state="off"))
    machine.disks[0].write_bytes(b"not an image" * 1000)
    code, message = plain.fail(machine.name)
    assert code == 103
    assert str(machine.disks[0]) in message


def test_an_image_behind_a_symbolic_link(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(kind="bios", state="off"))
    real = machine.disks[0].rename(machine.disks[0].with_name("real.qcow2"))
    machine.disks[0].symlink_to(real)
    code, message = plain.fail(machine.name)
    assert code == 103, message


def test_too_little_space_in_the_backup_root(
    agents: Lab, plain: Plain, tmp_path_factory: pytest.TempPathFactory
) -> None:
    machine = agents.add_machine(MachineSpec(kind="bios", content_mib=40))
    small = machine.node.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small)], check=True)
    try:
        plain.add_backup_subtree(machine.name, **{ROOT: f"file://{small}"})
        before = fingerprint(machine)
        code, message = plain.fail(machine.name)
        assert fingerprint(machine) == before
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert code == 47
    assert str(small) in message


def test_a_plan_without_a_root_directory(agents: Lab, plain: Plain) -> None:
    """No machine plan, a pool that nobody made: only the cluster's plan is left, without the root for this test."""
    machine = agents.add_machine(MachineSpec(kind="bios", state="off"))
    plain.modify(plain.machine_dn(machine.name), "replace sstVirtualMachinePool no-such-pool")
    cluster = plain.lab.tree.cluster_plan
    had = plain.read(cluster).get(ROOT)
    if had:
        plain.modify(cluster, f"delete {ROOT}")
    try:
        code, message = plain.fail(machine.name)
    finally:
        if had:
            plain.modify(cluster, f"replace {ROOT} {had[0]}")
    assert code == 32
    assert ROOT in message


def test_a_name_that_climbs_out_is_refused_and_the_next_machine_is_served(agents: Lab, plain: Plain) -> None:
    node = next(iter(agents.nodes.values()))
    dn = f"sstVirtualMachine=../../evil,{plain.lab.tree.machines}"
    plain.add(
        f"dn: {dn}\nobjectClass: sstVirtualizationVirtualMachine\nsstVirtualMachine: ../../evil\n"
        f"sstNode: {node.name}\nsstVirtualMachinePool: none\nsstDisplayName: evil\nsstMemory: 1\nsstVCPU: 1\n"
        "sstStatus: up\nsstType: kvm\n"
    )
    leaf = timestamp()
    good = agents.add_machine(MachineSpec(kind="bios"), node=node.name)
    code, message = plain.fail("../../evil", leaf)
    assert code == 101
    assert "../../evil" in message
    plain.back_up(good.name, leaf)
    sets.assert_digests(sets.directory_of(good, leaf))
    plain.delete_tree(dn)
