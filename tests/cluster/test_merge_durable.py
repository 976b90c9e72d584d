"""What a merge made whole is whole on the disk, not only in QEMU: it may die in the next moment.

QEMU takes the backing file's name out of an image while most of what says where the data lies is still in its memory.
The guests here never flush anything, so nobody else does it in time.
"""

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import Lab
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.conftest import end
from tests.cluster.plain import Plain, timestamp


@pytest.fixture(params=["running", "paused"])
def machine(agents: Lab, request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine = agents.add_machine(MachineSpec(kind="bios", state=request.param, content_mib=8))
    yield machine
    end(machine)


def content(image: Path, folder: Path) -> str:
    """A digest of what a guest reads from it."""
    raw = folder / "raw"
    argv = ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(image), str(raw)]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    return hashlib.blake2b(raw.read_bytes()).hexdigest()


def killed(machine: Machine) -> None:
    process = machine.node.qemu(machine.name)
    assert process is not None
    process.kill()
    until("QEMU to be gone", lambda: machine.node.qemu(machine.name) is None, 20)


def snapshotted(plain: Plain, machine: Machine) -> str:
    leaf = timestamp()
    plain.add_leaf(machine.name, leaf)
    plain.step(machine.name, leaf, "snapshot", "snapshotted")
    return leaf


def test_a_qemu_that_dies_right_after_the_merge_takes_nothing_along(
    plain: Plain, machine: Machine, tmp_path: Path
) -> None:
    before = content(machine.disks[0], tmp_path)
    leaf = snapshotted(plain, machine)
    plain.step(machine.name, leaf, "merge", "merged")
    killed(machine)
    sets.assert_whole(machine.disks[0])
    assert content(machine.disks[0], tmp_path) == before
