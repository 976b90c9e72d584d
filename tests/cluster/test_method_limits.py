"""Methods live and disk at their limits: what the machine writes, what people do to it meanwhile, what it cannot do.

Whatever it is, nothing that the guest wrote is lost, and the leaf says what came of it.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from lab import ticks
from lab.cluster import Lab
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.conftest import end
from tests.cluster.counting import assert_counts_without_a_gap
from tests.cluster.plain import Plain, files_below, timestamp
from tests.cluster.test_methods import assert_nothing_left, with_method
from tests.cluster.test_restore import assert_cleared, left_in_retain

SLOWLY = {"vmkeepBandwidthCopy": "1"}


@pytest.fixture
def machine(agents: Lab) -> Iterator[Machine]:
    machine = agents.add_machine(MachineSpec(content_mib=2))
    agents.wait_for_count(machine.name, 30)
    yield machine
    end(machine)


def snapshotted(plain: Plain, machine: Machine, method: str = "live", **more: str) -> str:
    """The leaf of a backup whose machine writes to overlays now."""
    with_method(plain, machine, method, **more)
    return begun(plain, machine)


def begun(plain: Plain, machine: Machine) -> str:
    leaf = timestamp()
    plain.add_leaf(machine.name, leaf)
    plain.step(machine.name, leaf, "snapshot", "snapshotted")
    assert {path.name for path in overlays(machine)} == {f".{disk.name}.{leaf}" for disk in machine.disks}
    return leaf


def overlays(machine: Machine) -> list[Path]:
    return sorted(path for disk in machine.disks for path in disk.parent.glob(f".{disk.name}.*"))


def copying(plain: Plain, machine: Machine, leaf: str) -> None:
    """Ask for the merge, and return while its copy is under way."""
    plain.ask(machine.name, leaf, "merge")
    until(
        "a copy to be under way",
        lambda: [n for n in files_below(machine.node.retain) if leaf in n and "partial" in n],
        20,
    )


def ended(plain: Plain, machine: Machine, leaf: str) -> str:
    """Merge what is merging to its end, retain it; the set is whole and nothing is left over. Its image."""
    entry = plain.wait(machine.name, leaf, "merged")
    assert entry["sstProvisioningReturnValue"] == ["0"], entry.get("vmkeepMessage")
    return retained(plain, machine, leaf)


def retained(plain: Plain, machine: Machine, leaf: str) -> str:
    plain.step(machine.name, leaf, "retain", "retained")
    plain.finish(machine.name, leaf)
    assert_nothing_left(machine, leaf)
    folder = sets.directory_of(machine, leaf)
    sets.assert_digests(folder)
    return str(next(folder / file["name"] for file in sets.manifest(folder)["files"] if file["role"] == "disk"))


def assert_counts_after_a_start(lab: Lab, machine: Machine) -> None:
    """It boots from its own disk, finds everything it wrote, and counts on from the newest record."""
    newest = ticks.newest_on_disk(machine.disks[0])
    machine.node.domain(machine.name).create()
    until("the guest to boot", lambda: f"B {newest}" in machine.serial.read_text(errors="replace"), 60)
    lab.wait_for_count(machine.name, 60, 60)
    assert ticks.read_serial(machine.serial).complaints == ()


# what the machine writes


def test_a_machine_that_writes_too_much_meanwhile_has_its_own_images_again(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(disks=2, content_mib=24))
    agents.wait_for_count(machine.name, 30)
    leaf = snapshotted(plain, machine, vmkeepOverlayLimit="1", **SLOWLY)
    plain.ask(machine.name, leaf, "merge")
    entry = plain.wait(machine.name, leaf, "merged")
    assert entry["sstProvisioningMode"] == ["merging"]
    assert "1 MiB" in entry["vmkeepMessage"][0]
    assert "vmkeepOverlayLimit" in entry["vmkeepMessage"][0]
    assert overlays(machine) == []
    assert [name for name in files_below(machine.node.retain) if leaf in name] == [], "it can be finished no more"
    assert_counts_without_a_gap(agents, machine)
    plain.modify(plain.lab.tree.machine_plan(machine.name), "delete vmkeepBandwidthCopy")
    later = plain.back_up(machine.name)
    sets.assert_digests(sets.directory_of(machine, later))
    assert overlays(machine) == []
    assert_counts_without_a_gap(agents, machine)


def test_copying_stops_with_the_agent_and_the_next_one_goes_on(agents: Lab, plain: Plain, machine: Machine) -> None:
    leaf = snapshotted(plain, machine, **SLOWLY)
    copying(plain, machine, leaf)
    agents.stop_agent(machine.node.name)
    assert not [name for name in files_below(machine.node.retain) if "partial" in name], "it had to be killed"
    assert plain.leaf(machine.name, leaf)["sstProvisioningMode"] == ["merging"]
    agents.start_agent(machine.node.name)
    ended(plain, machine, leaf)
    assert_counts_without_a_gap(agents, machine)


# what people do to the machine


def test_a_machine_switched_off_before_its_merge_is_merged_off(agents: Lab, plain: Plain, machine: Machine) -> None:
    leaf = snapshotted(plain, machine)
    agents.wait_for_count(machine.name, 60)
    at_least = ticks.last_count(machine.serial)
    machine.node.domain(machine.name).destroy()
    plain.ask(machine.name, leaf, "merge")
    image = ended(plain, machine, leaf)
    assert ticks.newest_on_disk(Path(image)) < at_least, "the set is of its instant"
    assert ticks.newest_on_disk(machine.disks[0]) >= at_least, "what was written since is on the image"
    assert_counts_after_a_start(agents, machine)


def test_a_machine_switched_off_while_it_is_copied_is_merged_off(agents: Lab, plain: Plain, machine: Machine) -> None:
    leaf = snapshotted(plain, machine, **SLOWLY)
    copying(plain, machine, leaf)
    at_least = ticks.last_count(machine.serial)
    machine.node.domain(machine.name).destroy()
    ended(plain, machine, leaf)
    assert ticks.newest_on_disk(machine.disks[0]) >= at_least
    assert_counts_after_a_start(agents, machine)


def test_a_machine_switched_off_and_on_again_goes_on_over_its_overlay(
    agents: Lab, plain: Plain, machine: Machine
) -> None:
    leaf = snapshotted(plain, machine, "disk")
    agents.wait_for_count(machine.name, 60)
    domain = machine.node.domain(machine.name)
    domain.destroy()
    domain.create()
    until("the guest to boot", lambda: "\nB " in machine.serial.read_text(errors="replace").replace("\r", ""), 60)
    agents.wait_for_count(machine.name, 60, 60)
    plain.ask(machine.name, leaf, "merge")
    ended(plain, machine, leaf)
    agents.wait_for_count(machine.name, 60, 60)
    assert ticks.read_serial(machine.serial).complaints == ()


def test_an_overlay_whose_leaf_was_deleted_is_written_back_by_the_next_backup(
    agents: Lab, plain: Plain, machine: Machine
) -> None:
    leaf = snapshotted(plain, machine)
    plain.delete_tree(plain.leaf_dn(machine.name, leaf))
    agents.wait_for_count(machine.name, 60)
    later = plain.back_up(machine.name, timestamp(1))
    assert_nothing_left(machine, leaf)
    sets.assert_digests(sets.directory_of(machine, later))
    assert_counts_without_a_gap(agents, machine)


def test_a_machine_defined_anew_over_its_frozen_image_loses_no_overlay(
    agents: Lab, plain: Plain, machine: Machine
) -> None:
    domain = machine.node.domain(machine.name)
    described = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    snapshotted(plain, machine)
    agents.wait_for_count(machine.name, 60)
    at_least = ticks.last_count(machine.serial)
    domain.destroy()
    machine.node.connection().defineXML(described)
    code, said = plain.fail(machine.name, timestamp(1))
    [overlay] = overlays(machine)
    assert str(overlay) in said, code
    subprocess.run(["qemu-img", "commit", "-q", "-f", "qcow2", str(overlay)], check=True, timeout=30)
    overlay.unlink()
    assert ticks.newest_on_disk(machine.disks[0]) >= at_least
    plain.back_up(machine.name, timestamp(2))
    assert_counts_after_a_start(agents, machine)


def test_an_overlay_that_only_qemu_knows_of_is_left_to_it(agents: Lab, plain: Plain, machine: Machine) -> None:
    """As after a libvirt that was killed in the instant of the snapshot, before it had noted the new chain."""
    with_method(plain, machine, "live")
    image = machine.disks[0]
    overlay = image.parent / f".{image.name}.20260101T010101Z"
    domain = machine.node.domain(machine.name)
    # libvirt itself does it this way: the file, its node, the transaction.
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image), "-F", "qcow2", str(overlay)],
        check=True,
        timeout=30,
    )
    nodes = libvirt_qemu.qemuMonitorCommand(domain, '{"execute":"query-named-block-nodes"}', 0)
    top = next(node for node in json.loads(nodes)["return"] if node["drv"] == "qcow2" and node["file"] == str(image))
    for command in (
        f'{{"execute":"blockdev-add","arguments":{{"driver":"file","filename":"{overlay}","node-name":"f1"}}}}',
        '{"execute":"blockdev-add","arguments":{"driver":"qcow2","file":"f1","backing":null,"node-name":"q1"}}',
        f'{{"execute":"blockdev-snapshot","arguments":{{"node":"{top["node-name"]}","overlay":"q1"}}}}',
    ):
        assert '"error"' not in libvirt_qemu.qemuMonitorCommand(domain, command, 0)
    agents.wait_for_count(machine.name, 60)
    at_least = ticks.last_count(machine.serial)
    _, said = plain.fail(machine.name)
    assert str(overlay) in said
    assert "libvirt does not say so" in said
    assert_counts_without_a_gap(agents, machine)
    domain.destroy()
    _, said = plain.fail(machine.name, timestamp(1))
    assert str(overlay) in said, "now nobody has it open, and it is not lost all the same"
    subprocess.run(["qemu-img", "commit", "-q", "-f", "qcow2", str(overlay)], check=True, timeout=30)
    overlay.unlink()
    assert ticks.newest_on_disk(image) >= at_least
    assert_counts_after_a_start(agents, machine)


def test_a_restore_is_refused_while_the_machine_writes_to_an_overlay(
    agents: Lab, plain: Plain, machine: Machine
) -> None:
    with_method(plain, machine, "live")
    good = plain.back_up(machine.name)
    leaf = begun(plain, machine)
    plain.delete_tree(plain.leaf_dn(machine.name, leaf))
    plain.edit_and_wait("restore-small-files", machine.name, good, "unretainedSmallFiles")
    plain.edit("restore-large-files", machine.name, good)
    entry = plain.wait(machine.name, good, "unretainedLargeFiles")
    assert entry["sstProvisioningReturnValue"] == ["104"], entry
    assert str(overlays(machine)[0]) in entry["vmkeepMessage"][0]
    assert_counts_without_a_gap(agents, machine)
    machine.node.domain(machine.name).destroy()
    plain.edit("restore-large-files-again", machine.name, good)
    until(
        "the refusal of a machine that is off",
        lambda: (
            (entry := plain.leaf(machine.name, good))["sstProvisioningReturnValue"] == ["104"]
            and entry["sstProvisioningState"] != ["0"]
        ),
        30,
    )
    plain.modify(plain.leaf_dn(machine.name, good), "replace sstProvisioningReturnValue 0")
    plain.finish(machine.name, good)
    plain.back_up(machine.name, timestamp(1))
    assert_counts_after_a_start(agents, machine)


# what the machine cannot do


@pytest.mark.parametrize("method", ["save", "live", "auto"])
def test_a_machine_that_hangs_on_its_host_is_refused_before_anything_is_touched(
    method: str, agents: Lab, plain: Plain
) -> None:
    machine = agents.add_machine(MachineSpec(kind="bios", state="off"))
    domain = with_directory_of_host(machine)
    domain.create()
    with_method(plain, machine, method)
    code, said = plain.fail(machine.name)
    assert code == 39
    assert "directory of the host" in said
    assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    assert left_in_retain(machine) == []
    plain.modify(plain.lab.tree.machine_plan(machine.name), "replace vmkeepMethod disk")
    plain.back_up(machine.name, timestamp(1))
    domain.destroy()


def with_directory_of_host(machine: Machine) -> libvirt.virDomain:
    """A host's device would do as well, and needs one."""
    shared = "<filesystem><source dir='/tmp'/><target dir='shared'/></filesystem></devices>"
    xml = machine.node.domain(machine.name).XMLDesc()
    return machine.node.connection().defineXML(xml.replace("</devices>", shared))


def test_an_image_that_is_raw_is_refused(agents: Lab, plain: Plain, machine: Machine) -> None:
    domain = machine.node.domain(machine.name)
    domain.destroy()
    described = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    machine.node.connection().defineXML(described.replace("type='qcow2'", "type='raw'"))
    domain.create()
    with_method(plain, machine, "live")
    _, said = plain.fail(machine.name)
    assert "only qcow2" in said
    assert overlays(machine) == []


# firmware


def test_variables_and_tpm_come_with_a_machine_that_is_saved_live(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(kind="uefi", tpm=True))
    with_method(plain, machine, "live")
    qemu = machine.node.qemu(machine.name)
    leaf = plain.back_up(machine.name)
    assert machine.node.qemu(machine.name) == qemu, "it never stopped"
    folder = sets.directory_of(machine, leaf)
    sets.assert_digests(folder)
    roles = {file["role"] for file in sets.manifest(folder)["files"]}
    assert {"nvram", "tpm", "state"} <= roles
    assert_nothing_left(machine, leaf)
    machine.nvram.write_bytes(b"lost")
    plain.restore(machine.name, leaf)
    assert machine.node.domain(machine.name).state()[0] == libvirt.VIR_DOMAIN_RUNNING
    assert machine.nvram.stat().st_size == 540672
    assert_cleared(machine)
