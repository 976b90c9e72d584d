"""A set is worth something only if it can be brought back with cp and virsh alone."""

import shutil
import subprocess

import pytest

from lab import ticks
from lab.cluster import Lab
from lab.machines import MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.plain import Plain


@pytest.mark.parametrize("disks", [1, 2])
def test_a_set_restored_with_cp_and_virsh_runs_on_from_its_instant(disks: int, agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(disks=disks))
    agents.wait_for_count(machine.name, 50)
    leaf = plain.back_up(machine.name)
    agents.wait_for_count(machine.name, 120)
    folder = sets.directory_of(machine, leaf)
    files = {file["original_path"]: file["name"] for file in sets.manifest(folder)["files"] if file["role"] == "disk"}
    on_disk = [ticks.newest_on_disk(folder / files[str(disk)]) for disk in machine.disks]

    domain = machine.node.domain(machine.name)
    domain.destroy()
    before = machine.serial.stat().st_size
    for disk in machine.disks:
        shutil.copyfile(folder / files[str(disk)], disk)
    state, xml = (folder / f"{machine.name}.{suffix}.{leaf}" for suffix in ("state", "xml"))
    subprocess.run(["virsh", "-c", machine.node.uri, "restore", str(state), "--xml", str(xml)], check=True, timeout=60)

    first, *_ = until("a count after the restore", lambda: ticks.counts_since(machine.serial, before), 30)
    assert first in (on_disk[0], on_disk[0] + 1), "memory and disk are of one instant"
    assert all(on_disk[0] - count in (0, 1) for count in on_disk), "all disks are of one instant"
    agents.wait_for_count(machine.name, 120)
    after = machine.serial.read_text(errors="replace")[before:]
    assert " BAD" not in after
    assert "V " in after, "the guest read its pattern on the restored disks"
