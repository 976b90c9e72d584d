"""Restores with controller and agents, asked for by edits and by the command line, and what disasters need."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from lab import services, ticks
from lab.cluster import Lab, LabOptions
from lab.hypervisor import NodeOptions
from lab.machines import Machine, MachineSpec
from lab.slapd import SlapdOptions
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.history import transcript
from tests.cluster.plain import Plain, files_below
from tests.cluster.test_restore import assert_cleared
from tests.conftest import ClusterFactory

STEPS = (Path(__file__).parent / "transcripts/restore.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def whole(cluster: ClusterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two nodes that see one backup directory."""
    options = NodeOptions(backup=tmp_path_factory.mktemp("shared") / "backup")
    lab = cluster(
        LabOptions(nodes=2, machines=0, agents=True, controller=True, slapd=SlapdOptions(audit=True), node=options)
    )
    yield lab
    lab.down()


@pytest.fixture
def plain(whole: Lab) -> Plain:
    return Plain(whole)


def back_up(plain: Plain, machine: str) -> str:
    """A backup by the controller's own command; its leaf."""
    command = [services.script("vmkeep-controller"), "--settings", plain.lab.controller_settings, "run", machine]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = plain.lab.directory.search(plain.lab.tree.machine(machine), "(objectClass=sstProvisioning)")
    return max(entry["ou"][0] for entry in found)


def description(machine: Machine, flags: int = 0) -> etree._Element:
    return etree.fromstring(machine.node.domain(machine.name).XMLDesc(flags))


def retained(machine: Machine, leaf: str, kind: str) -> Path:
    folder = sets.directory_of(machine, leaf).relative_to(machine.node.backup)
    return machine.node.retain / folder / f"{machine.name}.{kind}.{leaf}"


def assert_runs_from(lab: Lab, machine: Machine, leaf: str, offset: int) -> None:
    """Its counter goes on from the instant of the set, and what it reads is what it wrote."""
    folder = sets.directory_of(machine, leaf)
    disks = [folder / file["name"] for file in sets.manifest(folder)["files"] if file["role"] == "disk"]
    at_instant = max(ticks.newest_on_disk(disk) for disk in disks)
    lab.wait_for_count(machine.name, 60)
    assert ticks.counts_since(machine.serial, offset)[0] in (at_instant, at_instant + 1)
    assert " BAD" not in machine.serial.read_text(errors="replace")[offset:]


def finished(plain: Plain, machine: Machine, leaf: str) -> dict[str, list[str]]:
    return until(
        "the restore to end",
        lambda: entry if (entry := plain.leaf(machine.name, leaf))["sstProvisioningMode"] == ["finished"] else None,
        120,
    )


def test_the_steps_as_slapd_recorded_them_asked_for_by_edits(whole: Lab, plain: Plain) -> None:
    machine = whole.add_machine(MachineSpec(disks=2))
    whole.wait_for_count(machine.name, 30)
    leaf = back_up(plain, machine.name)
    whole.wait_for_count(machine.name, 100)
    before, offset = len(transcript(whole, plain.leaf_dn(machine.name, leaf))), machine.serial.stat().st_size
    plain.edit_and_wait("restore-small-files", machine.name, leaf, "unretainedSmallFiles")
    plain.edit("restore-large-files", machine.name, leaf)
    entry = finished(plain, machine, leaf)
    assert entry["sstProvisioningReturnValue"] == ["0"]
    assert transcript(whole, plain.leaf_dn(machine.name, leaf))[before:] == STEPS
    assert not {"vmkeepConflicts", "vmkeepEntry", "vmkeepEntryBefore"} & set(entry)
    whole.wait_for_count(machine.name, 10)
    assert_cleared(machine)
    assert machine.serial.stat().st_size > offset


def test_the_same_steps_asked_for_by_the_command_line(whole: Lab, plain: Plain) -> None:
    machine = whole.add_machine(MachineSpec())
    whole.wait_for_count(machine.name, 30)
    leaf = back_up(plain, machine.name)
    whole.wait_for_count(machine.name, 100)
    before = len(transcript(whole, plain.leaf_dn(machine.name, leaf)))
    done = plain.console("restore", machine.name, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert transcript(whole, plain.leaf_dn(machine.name, leaf))[before:] == STEPS
    assert_cleared(machine)
    again = plain.console("status", machine.name)
    assert again.returncode == 0, again.stdout


def test_what_was_edited_is_what_runs(whole: Lab, plain: Plain) -> None:
    machine = whole.add_machine(MachineSpec(card=True))
    leaf = back_up(plain, machine.name)
    plain.edit_and_wait("restore-small-files", machine.name, leaf, "unretainedSmallFiles")
    xml, ldif = retained(machine, leaf, "xml"), retained(machine, leaf, "ldif")
    root = etree.fromstring(xml.read_bytes())
    mac = root.find("devices/interface/mac").get("address")
    xml.write_text(xml.read_text().replace("131072", "163840").replace(mac, "52:54:00:12:34:56"))
    ldif.write_text(ldif.read_text().replace(f"sstMemory: {128 << 20}", f"sstMemory: {160 << 20}"))
    plain.edit("restore-large-files", machine.name, leaf)
    finished(plain, machine, leaf)
    entry = plain.leaf(machine.name, leaf)
    assert "without its saved memory" in entry["vmkeepMessage"][0], entry
    whole.wait_for_count(machine.name, 5)
    for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
        running = description(machine, flags)
        assert running.findtext("memory") == "163840"
        assert running.find("devices/interface/mac").get("address") == "52:54:00:12:34:56"
    assert plain.read(plain.machine_dn(machine.name))["sstMemory"] == [str(160 << 20)]
    back_up(plain, machine.name)


def test_the_entry_is_brought_back_in_line_and_nothing_else(whole: Lab, plain: Plain) -> None:
    machine = whole.add_machine(MachineSpec(kind="bios", state="off"))
    back_up(plain, machine.name)
    dn, disk = plain.machine_dn(machine.name), f"sstDisk=vda,ou=devices,{plain.machine_dn(machine.name)}"
    plan = plain.read(plain.lab.tree.machine_plan(machine.name))
    saved = plain.read(dn), plain.read(disk)
    plain.modify(dn, "replace sstDisplayName changed since", "replace sstMemory 1")
    plain.delete_tree(disk)
    done = plain.console("restore", machine.name, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sstDisplayName" in done.stdout
    assert (plain.read(dn), plain.read(disk)) == saved
    assert plain.read(plain.lab.tree.machine_plan(machine.name)) == plan
    back_up(plain, machine.name)


def test_what_was_replaced_is_kept_until_it_is_let_go(whole: Lab, plain: Plain) -> None:
    machine = whole.add_machine(MachineSpec(kind="bios"))
    leaf = back_up(plain, machine.name)
    inode = machine.disks[0].stat().st_ino
    done = plain.console("restore", machine.name, "--yes", "--keep-old")
    assert done.returncode == 0, done.stdout + done.stderr
    kept = retained(machine, leaf, "xml").parent / "before"
    assert (kept / "vda").stat().st_ino == inode
    assert {path.name for path in kept.iterdir()} >= {"vda", f"{machine.name}.xml", f"{machine.name}.state"}
    plain.edit("drop-old", machine.name, leaf)
    assert_cleared(machine)


def test_one_disk_goes_back_into_a_machine_that_is_off(whole: Lab, plain: Plain) -> None:
    machine = whole.add_machine(MachineSpec(kind="bios", state="off", disks=2, content_mib=1))
    leaf = back_up(plain, machine.name)
    folder = sets.directory_of(machine, leaf)
    kept = {file["target"]: folder / file["name"] for file in sets.manifest(folder)["files"] if file["target"]}
    untouched = machine.disks[0].stat().st_ino
    machine.disks[1].write_bytes(b"overwritten")
    done = plain.console("restore", machine.name, "--yes", "--disk", "vdb")
    assert done.returncode == 0, done.stdout + done.stderr
    assert machine.disks[1].read_bytes() == kept["vdb"].read_bytes()
    assert machine.disks[0].stat().st_ino == untouched
    assert_cleared(machine)
    machine.node.domain(machine.name).create()
    done = plain.console("restore", machine.name, "--yes", "--disk", "vdb")
    assert done.returncode == 1
    assert "switch it off" in done.stdout + done.stderr
    plain.console("abort", machine.name)
    assert_cleared(machine)


def test_a_new_machine_beside_the_old_one(whole: Lab, plain: Plain) -> None:
    machine = whole.add_machine(MachineSpec(card=True))
    whole.wait_for_count(machine.name, 30)
    back_up(plain, machine.name)
    name = f"copy-of-{machine.name}"
    done = plain.console("restore", machine.name, "--yes", "--as", name, "--isolated")
    assert done.returncode == 0, done.stdout + done.stderr
    whole.wait_for_count(machine.name, 5)
    copy = machine.node.domain(name)
    try:
        described, original = etree.fromstring(copy.XMLDesc(0)), description(machine)
        assert copy.isActive()
        assert copy.UUIDString() != machine.uuid
        card = described.find("devices/interface")
        assert card.find("mac").get("address") != original.find("devices/interface/mac").get("address")
        assert card.find("link").get("state") == "down"
        image = Path(described.find("devices/disk/source").get("file"))
        assert image not in machine.disks
        sets.assert_whole(image)
        assert plain.read(plain.machine_dn(name))["sstNode"] == [machine.node.name]
        back_up(plain, name)
    finally:
        copy.destroy()
        copy.undefine()


def test_deleting_an_iteration_takes_files_and_leaf_but_never_the_last_good_one(whole: Lab, plain: Plain) -> None:
    machine = whole.add_machine(MachineSpec(kind="bios"))
    plain.add_backup_subtree(machine.name, sstBackupNumberOfIterations="3")
    first, second = back_up(plain, machine.name), back_up(plain, machine.name)
    done = plain.console("delete", machine.name, first, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not sets.directory_of(machine, first).exists()
    assert plain.leaf(machine.name, first) == {}
    refused = plain.console("delete", machine.name, second, "--yes")
    assert refused.returncode == 1
    assert "last good backup" in refused.stdout + refused.stderr
    plain.edit("delete-iteration", machine.name, second)
    entry = plain.wait(machine.name, second, "deleted")
    assert entry["sstProvisioningReturnValue"] == ["18"]
    assert "only good backup" in entry["vmkeepMessage"][0]
    assert plain.console("abort", machine.name).returncode == 0
    sets.assert_digests(sets.directory_of(machine, second))
    assert plain.leaf(machine.name, second)["sstProvisioningMode"] == ["finished"]
    forced = plain.console("delete", machine.name, second, "--yes", "--last")
    assert forced.returncode == 0, forced.stdout + forced.stderr
    assert not sets.directory_of(machine, second).exists()


# disasters


def test_a_machine_that_is_undefined_with_its_images_gone_comes_back(whole: Lab, plain: Plain) -> None:
    machine = whole.add_machine(MachineSpec(disks=2))
    whole.wait_for_count(machine.name, 30)
    leaf = back_up(plain, machine.name)
    domain = machine.node.domain(machine.name)
    domain.destroy()
    domain.undefine()
    for disk in machine.disks:
        disk.unlink()
    offset = machine.serial.stat().st_size
    done = plain.console("restore", machine.name, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not defined" in done.stdout
    assert_runs_from(whole, machine, leaf, offset)
    assert machine.node.domain(machine.name).isPersistent()
    back_up(plain, machine.name)


def test_a_machine_that_is_undefined_with_its_firmware_gone_comes_back(whole: Lab, plain: Plain) -> None:
    """Its NVRAM and its TPM's memory are nowhere but in the set."""
    machine = whole.add_machine(MachineSpec(kind="uefi", tpm=True))
    leaf = back_up(plain, machine.name)
    saved = {file["role"]: file["name"] for file in sets.manifest(sets.directory_of(machine, leaf))["files"]}
    variables = (sets.directory_of(machine, leaf) / saved["nvram"]).read_bytes()
    tpm = machine.node.libvirt_state / "swtpm" / machine.uuid
    domain = machine.node.domain(machine.name)
    domain.destroy()
    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
    machine.disks[0].unlink()
    assert not machine.nvram.exists()
    assert not tpm.exists()
    done = plain.console("restore", machine.name, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert machine.node.domain(machine.name).isActive()
    assert machine.nvram.stat().st_size == len(variables)
    assert tpm.stat().st_mode & 0o777 == 0o711, "swtpm is not root elsewhere, and has to get through"
    assert [path for path in files_below(tpm) if path.endswith(".permall")]
    assert_cleared(machine)
    back_up(plain, machine.name)


def test_a_machine_whose_entry_is_gone_comes_back_by_its_set(whole: Lab, plain: Plain) -> None:
    machine = whole.add_machine(MachineSpec())
    whole.wait_for_count(machine.name, 30)
    leaf = back_up(plain, machine.name)
    plain.delete_tree(plain.machine_dn(machine.name))
    machine.node.domain(machine.name).destroy()
    offset = machine.serial.stat().st_size

    listed = plain.console("sets", str(machine.node.backup), "--machine", machine.name)
    assert leaf in listed.stdout, listed.stderr
    rebuilt = plain.console("rebuild-catalogue", str(machine.node.backup), "--machine", machine.name)
    assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr
    done = plain.console("restore", machine.name, "--at", leaf, "--yes")

    assert done.returncode == 0, done.stdout + done.stderr
    assert_runs_from(whole, machine, leaf, offset)
    back_up(plain, machine.name)


def test_a_machine_of_a_lost_node_comes_back_on_another(whole: Lab, plain: Plain) -> None:
    """Nodes of a lab keep their images at paths of their own, so the admin gives the new ones, in retain."""
    lost, other = whole.nodes.values()
    machine = whole.add_machine(MachineSpec(), node=lost.name)
    whole.wait_for_count(machine.name, 30)
    leaf = back_up(plain, machine.name)
    folder = sets.directory_of(machine, leaf)
    machine.node.domain(machine.name).destroy()
    shutil.rmtree(machine.disks[0].parent)
    whole.kill_agent(lost.name)
    try:
        plain.modify(plain.machine_dn(machine.name), f"replace sstNode {other.name}")
        plain.modify(plain.machine_dn(machine.name), f"replace sstVirtualMachinePool {other.pool}")
        plain.edit_and_wait("restore-small-files", machine.name, leaf, "unretainedSmallFiles")
        texts = [
            path for path in other.retain.rglob(f"{machine.name}.*.{leaf}") if path.suffixes[0] in (".xml", ".ldif")
        ]
        assert len(texts) == 2
        for path in texts:
            text = path.read_text().replace(f"/nodes/{lost.name}/", f"/nodes/{other.name}/")
            path.write_text(text.replace(lost.pool, other.pool))
        done = plain.console("restore", machine.name, "--yes")
        assert done.returncode == 0, done.stdout + done.stderr
        moved = Machine(
            machine.name, other, machine.spec, machine.uuid, (), other.folder / "serial" / machine.serial.name
        )
        at_instant = ticks.newest_on_disk(next(path for path in folder.iterdir() if ".qcow2." in path.name))
        first = until("a count on the other node", lambda: ticks.counts_since(moved.serial, 0)[:1], 60)[0]
        assert first in (at_instant, at_instant + 1)
        assert plain.read(plain.machine_dn(machine.name))["sstNode"] == [other.name]
        assert [name for name in files_below(other.retain) if machine.name in name] == []
        back_up(plain, machine.name)
        other.domain(machine.name).destroy()
    finally:
        whole.start_agent(lost.name)
