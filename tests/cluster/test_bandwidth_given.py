"""What a leaf was given for its merge and retain, real agents keep to; no assertion says how fast something must be."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest

from lab.cluster import Lab
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.plain import Plain, timestamp

CONTENT_MIB, GIVEN = 16, 4  # MiB, MiB/s
LEAST_SECONDS = CONTENT_MIB / GIVEN * 0.6


def seconds(entry: dict[str, list[str]], what: str) -> float:
    return float(dict(value.split(": ") for value in entry["sstProvisioningExecutionTime"])[what])


def give(plain: Plain, machine: Machine, leaf: str, bandwidth: int) -> None:
    """As the controller does with the asking."""
    plain.modify(plain.leaf_dn(machine.name, leaf), f"replace vmkeepBandwidth {bandwidth}")


def snapshotted(plain: Plain, machine: Machine) -> str:
    leaf = timestamp()
    plain.add_leaf(machine.name, leaf)
    plain.step(machine.name, leaf, "snapshot", "snapshotted")
    return leaf


@contextmanager
def another_filesystem(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)], check=True, timeout=30)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=30)


def bandwidth_of_job(machine: Machine) -> int | None:
    """As libvirt tells it, in MiB/s; None where there is no job."""
    try:
        job = machine.node.domain(machine.name).blockJobInfo("vda")
    except libvirt.libvirtError:
        return None
    return int(job["bandwidth"]) if job else None


def test_a_running_machine_is_merged_and_retained_within_what_its_leaf_was_given(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(kind="bios", content_mib=CONTENT_MIB))
    with another_filesystem(machine.node.folder / "given") as root:
        limits = {"sstVirtualizationBandwidthMerge": "200", "sstBackupRootDirectory": f"file://{root}"}
        plain.add_backup_subtree(machine.name, **limits)
        leaf = snapshotted(plain, machine)
        give(plain, machine, leaf, GIVEN)
        plain.ask(machine.name, leaf, "merge")
        assert until("the job of the merge", lambda: bandwidth_of_job(machine), 60, 0.05) == GIVEN
        merged = plain.wait(machine.name, leaf, "merged")
        assert seconds(merged, "merge") > LEAST_SECONDS
        retained = plain.step(machine.name, leaf, "retain", "retained")
        assert seconds(retained, "retain") > LEAST_SECONDS
        vmtype, pool = machine.disks[0].relative_to(machine.node.images).parts[:2]
        sets.assert_digests(root / vmtype / pool / machine.name / leaf)


@pytest.mark.parametrize("plan", ["", "4"], ids=["leaf", "plan"])
def test_a_machine_that_is_off_is_merged_within_the_lower_of_leaf_and_plan(
    plan: str, agents: Lab, plain: Plain
) -> None:
    machine = agents.add_machine(MachineSpec(kind="bios", state="off", content_mib=CONTENT_MIB))
    if plan:
        plain.add_backup_subtree(machine.name, sstVirtualizationBandwidthMerge=plan)
    leaf = snapshotted(plain, machine)
    give(plain, machine, leaf, 200 if plan else GIVEN)
    merged = plain.step(machine.name, leaf, "merge", "merged")
    assert seconds(merged, "merge") > LEAST_SECONDS
    plain.step(machine.name, leaf, "retain", "retained")
    sets.assert_digests(sets.directory_of(machine, leaf))
    sets.assert_whole(machine.disks[0])
