"""Every method, for machines that run, are paused or off, on one filesystem and on two."""

import itertools

import pytest

from lab import ticks
from lab.cluster import Lab
from lab.machines import Machine, MachineSpec
from tests.cluster import sets
from tests.cluster.plain import Plain, files_below
from tests.cluster.test_restore import assert_cleared, counts_after, definition, power


def with_method(plain: Plain, machine: Machine, method: str, **more: str) -> None:
    plain.add_backup_subtree(machine.name)
    classes = ("organizationalUnit", "sstVirtualizationBackupObjectClass", "vmkeepPlan")
    dn = plain.lab.tree.machine_plan(machine.name)
    plain.modify(
        dn, "add objectClass " + classes[-1], f"add vmkeepMethod {method}", *(f"add {n} {v}" for n, v in more.items())
    )


def assert_as_before(machine: Machine, leaf: str) -> None:
    """Flat chains at their own paths, and nothing of the backup beside them, in retain or on the RAM disk."""
    for disk in machine.disks:
        sets.assert_whole(disk)
        assert [path.name for path in disk.parent.iterdir() if leaf in path.name] == []
    assert [name for name in files_below(machine.node.retain) if leaf in name] == []
    assert [name for name in files_below(machine.node.ram) if leaf in name] == []


@pytest.mark.parametrize("method", ["live", "disk"])
@pytest.mark.parametrize("disks", [1, 2])
def test_a_running_machine_is_backed_up_and_restored(method: str, disks: int, agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(disks=disks))
    with_method(plain, machine, method)
    agents.wait_for_count(machine.name, 50)
    before, described, running = power(machine), definition(machine), machine.node.qemu(machine.name)
    leaf = plain.back_up(machine.name)

    assert machine.node.qemu(machine.name) == running, "it never stopped"
    assert definition(machine) == described
    assert_as_before(machine, leaf)
    entry = plain.leaf(machine.name, leaf)
    assert entry["vmkeepMethod"] == [method]
    assert entry["vmkeepConsistency"] == ["state" if method == "live" else "crash"]
    folder = sets.directory_of(machine, leaf)
    sets.assert_digests(folder)
    assert sets.manifest(folder)["method"] == method
    images = [path for path in sorted(folder.iterdir()) if ".qcow2." in path.name]
    for image in images:
        sets.assert_whole(image)
    at_instant = [ticks.newest_on_disk(image) for image in images]
    assert max(at_instant) - min(at_instant) <= 1, "all disks are of one instant"
    agents.wait_for_count(machine.name, 100)
    assert ticks.read_serial(machine.serial).missing == []
    offset = machine.serial.stat().st_size

    plain.restore(machine.name, leaf)

    assert power(machine) == before
    agents.wait_for_count(machine.name, 60)
    counted = counts_after(machine.serial, offset)
    if method == "live":
        back = next(after for count, after in itertools.pairwise(counted) if after < count)
        assert back in (max(at_instant), max(at_instant) + 1)
    assert " BAD" not in machine.serial.read_text(errors="replace")[offset:]
    assert_cleared(machine)
    plain.back_up(machine.name)
