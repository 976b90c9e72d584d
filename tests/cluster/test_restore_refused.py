"""Whatever is wrong with a set or with what was edited, the machine runs on as before, and the leaf says why."""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3

from lab.cluster import Lab
from lab.machines import MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.backed_up import BackedUp
from tests.cluster.conftest import end
from tests.cluster.plain import Plain, files_below
from tests.cluster.test_restore import left_in_retain

DIGEST = "vmkeepManifestDigest"


@dataclass(frozen=True)
class Tried(BackedUp):
    """A running machine and its set."""

    def file(self, role: str) -> Path:
        return self.folder / next(file["name"] for file in sets.manifest(self.folder)["files"] if file["role"] == role)

    def try_step(self, edit: str, done: str) -> tuple[int, str]:
        """Ask for a step that has to fail; its return value and message."""
        self.plain.edit(edit, self.machine.name, self.leaf)
        entry = self.plain.wait(self.machine.name, self.leaf, done)
        assert entry["sstProvisioningMode"] != [done], entry
        return int(entry["sstProvisioningReturnValue"][0]), entry["vmkeepMessage"][0]

    def small(self) -> None:
        self.plain.edit_and_wait("restore-small-files", self.machine.name, self.leaf, "unretainedSmallFiles")

    def large(self) -> None:
        self.plain.edit_and_wait("restore-large-files", self.machine.name, self.leaf, "unretainedLargeFiles")

    def back_out(self) -> None:
        """Whatever the leaf's mode is: finished again, with 0."""
        dn = self.plain.leaf_dn(self.machine.name, self.leaf)
        self.plain.modify(dn, "replace sstProvisioningReturnValue 0")
        self.plain.finish(self.machine.name, self.leaf)
        until("retain to be empty", lambda: not self.retain.exists(), 60)

    def state(self) -> tuple[object, ...]:
        """Everything a refused restore must leave as it is."""
        domain = self.machine.node.domain(self.machine.name)
        dn = self.plain.machine_dn(self.machine.name)
        entries = self.lab.directory.search(dn, "(!(objectClass=sstProvisioning))")
        inodes = [disk.stat().st_ino for disk in self.machine.disks]
        return domain.XMLDesc(2), inodes, sorted(sorted(entry.items()) for entry in entries)


@pytest.fixture(scope="module")
def backed_up(agents: Lab) -> Iterator[Tried]:
    plain = Plain(agents)
    machine = agents.add_machine(MachineSpec())
    agents.wait_for_count(machine.name, 30)
    yield Tried(agents, plain, machine, plain.back_up(machine.name))
    end(machine)


@pytest.fixture
def as_before(backed_up: Tried) -> Iterator[Tried]:
    """The machine runs before and after, untouched, and counts without a gap; retain is empty after backing out."""
    before = backed_up.state()
    pid = backed_up.machine.node.qemu(backed_up.machine.name)
    yield backed_up
    assert backed_up.machine.node.qemu(backed_up.machine.name) == pid, "it was never stopped"
    backed_up.lab.wait_for_count(backed_up.machine.name, 5)
    backed_up.back_out()
    assert backed_up.state() == before
    assert left_in_retain(backed_up.machine) == []


def flip(path: Path, at: int) -> None:
    """Turn one byte over; done twice it is as it was."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))


@pytest.mark.parametrize("role", ["state", "disk", "xml", "ldif"])
def test_a_missing_file_is_found_first(role: str, as_before: Tried) -> None:
    path = as_before.file(role)
    aside = path.rename(path.with_suffix(".aside"))
    try:
        code, message = as_before.try_step("restore-small-files", "unretainedSmallFiles")
    finally:
        aside.rename(path)
    assert code == 37
    assert str(path) in message


@pytest.mark.parametrize("role", ["xml", "ldif"])
def test_one_flipped_byte_in_a_text_is_found_before_a_person_reads_it(role: str, as_before: Tried) -> None:
    path = as_before.file(role)
    flip(path, path.stat().st_size // 2)
    try:
        code, message = as_before.try_step("restore-small-files", "unretainedSmallFiles")
    finally:
        flip(path, path.stat().st_size // 2)
    assert code == 38
    assert path.name in message


@pytest.mark.parametrize("role", ["state", "disk"])
def test_one_flipped_byte_in_a_large_file_is_found_while_copying(role: str, as_before: Tried) -> None:
    path = as_before.file(role)
    as_before.small()
    flip(path, path.stat().st_size - 4096)
    try:
        code, message = as_before.try_step("restore-large-files", "unretainedLargeFiles")
    finally:
        flip(path, path.stat().st_size - 4096)
    assert code == 38
    assert path.name in message
    assert [name for name in files_below(as_before.retain) if "qcow2" in name or "state" in name] == []


def test_a_set_that_was_changed_with_its_manifest_is_not_the_one_the_directory_means(as_before: Tried) -> None:
    manifest = as_before.folder / f"manifest.json.{as_before.leaf}"
    text = manifest.read_bytes()
    manifest.write_bytes(text + b" ")
    try:
        code, message = as_before.try_step("restore-small-files", "unretainedSmallFiles")
    finally:
        manifest.write_bytes(text)
    assert code == 38
    assert "manifest" in message


EDITS: dict[str, tuple[Callable[[str], str], int, str]] = {
    "a foreign emulator": (lambda xml: xml.replace("/usr/bin/qemu-system-x86_64", "/bin/sh"), 107, "/bin/sh"),
    "a host device": (
        lambda xml: xml.replace(
            "</devices>",
            "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='0' slot='2' function='0'/></source>"
            "</hostdev></devices>",
        ),
        107,
        "hostdev",
    ),
    "a command line": (
        lambda xml: xml.replace("<domain ", "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ").replace(
            "</domain>", "<qemu:commandline><qemu:arg value='-S'/></qemu:commandline></domain>"
        ),
        107,
        "commandline",
    ),
    "another name": (lambda xml: xml.replace("<name>", "<name>other-"), 45, "has the name 'other-"),
    "no end": (lambda xml: xml.replace("</domain>", ""), 45, ".xml.2"),
    "an entity": (
        lambda xml: (
            "<!DOCTYPE domain [<!ENTITY e SYSTEM 'file:///etc/hostname'>]>" + xml.replace("</name>", "&e;</name>")
        ),
        45,
        "declares a document type",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_description_that_is_not_allowed_is_not_used(edit: str, as_before: Tried) -> None:
    change, expected, named = EDITS[edit]
    as_before.small()
    path = as_before.retain / f"{as_before.machine.name}.xml.{as_before.leaf}"
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    code, message = as_before.try_step("restore-large-files", "unretainedLargeFiles")
    assert code == expected, message
    assert named in message
    assert as_before.machine.name in message


def test_a_disk_outside_the_roots_is_not_used(as_before: Tried) -> None:
    as_before.small()
    for kind in ("xml", "ldif"):
        path = as_before.retain / f"{as_before.machine.name}.{kind}.{as_before.leaf}"
        path.write_text(path.read_text().replace(str(as_before.machine.disks[0]), "/etc/shadow"))
    code, message = as_before.try_step("restore-large-files", "unretainedLargeFiles")
    assert code == 107
    assert "the disk image '/etc/shadow' lies outside" in message


def test_a_disk_over_a_file_that_is_not_the_machines_own_is_not_used(as_before: Tried) -> None:
    """It may be another node's machine's; an agent sees its own alone."""
    disk = as_before.machine.disks[0]
    other = disk.with_name("of-somebody-else.qcow2")
    other.write_bytes(b"of somebody else")
    as_before.small()
    for kind in ("xml", "ldif"):
        path = as_before.retain / f"{as_before.machine.name}.{kind}.{as_before.leaf}"
        path.write_text(path.read_text().replace(str(disk), str(other)))
    code, message = as_before.try_step("restore-large-files", "unretainedLargeFiles")
    assert code == 103
    assert f"there is a file at {other}" in message
    assert other.read_bytes() == b"of somebody else"
    other.unlink()


LDIFS: dict[str, Callable[[str, str], str]] = {
    "a name outside the machine": lambda ldif, dn: ldif + "\n\ndn: cn=evil,o=elsewhere\nobjectClass: top\ncn: evil\n",
    "a value from a file": lambda ldif, dn: ldif.replace(
        "sstDisplayName:", "sstDisplayName:< file:///etc/shadow\nx:", 1
    ),
    "a password": lambda ldif, dn: ldif.replace("sstDisplayName:", "userPassword: secret\nsstDisplayName:", 1),
    "a change record": lambda ldif, dn: f"dn: {dn}\nchangetype: delete\n",
}


@pytest.mark.parametrize("edit", LDIFS)
def test_an_edited_entry_that_is_not_allowed_is_not_used(edit: str, as_before: Tried) -> None:
    as_before.small()
    path = as_before.retain / f"{as_before.machine.name}.ldif.{as_before.leaf}"
    text = path.read_text()
    changed = LDIFS[edit](text, as_before.plain.machine_dn(as_before.machine.name))
    assert changed != text
    path.write_text(changed)
    code, message = as_before.try_step("restore-large-files", "unretainedLargeFiles")
    assert code == 10, message
    assert as_before.machine.name in message


def test_texts_that_do_not_fit_each_other_are_not_used(as_before: Tried) -> None:
    as_before.small()
    path = as_before.retain / f"{as_before.machine.name}.ldif.{as_before.leaf}"
    disk = str(as_before.machine.disks[0])
    path.write_text(path.read_text().replace(disk, disk.replace(".qcow2", "-other.qcow2")))
    code, message = as_before.try_step("restore-large-files", "unretainedLargeFiles")
    assert code == 33
    assert "-other.qcow2" in message
    assert path.name in message


@pytest.fixture
def leaf_dn(backed_up: Tried) -> Iterator[str]:
    """The leaf, from which a test's wishes are taken away again."""
    dn = backed_up.plain.leaf_dn(backed_up.machine.name, backed_up.leaf)
    yield dn
    backed_up.plain.modify(dn, "replace vmkeepRestoreDisk", "replace sstRestoreVMWithoutState")


def test_one_disk_of_a_running_machine_is_refused_before_anything_is_copied(as_before: Tried, leaf_dn: str) -> None:
    as_before.plain.modify(leaf_dn, "replace vmkeepRestoreDisk vda")
    as_before.small()
    code, message = as_before.try_step("restore-large-files", "unretainedLargeFiles")
    assert code == 18, message
    assert "single disks are restored into a machine that is off" in message
    assert [name for name in files_below(as_before.retain) if "qcow2" in name] == []


def test_that_the_memory_is_not_wanted_is_said_before_the_decision(as_before: Tried, leaf_dn: str) -> None:
    as_before.plain.modify(leaf_dn, "replace sstRestoreVMWithoutState TRUE")
    as_before.small()
    [message] = as_before.plain.read(leaf_dn)["vmkeepMessage"]
    assert "started without its saved memory: sstRestoreVMWithoutState is TRUE; to change what comes back" in message


def test_a_restore_beside_another_leaf_at_work_is_refused(as_before: Tried) -> None:
    other = "20200101T000000Z"
    as_before.plain.add_leaf(as_before.machine.name, other)
    try:
        code, message = as_before.try_step("restore-small-files", "unretainedSmallFiles")
    finally:
        as_before.plain.delete_tree(as_before.plain.leaf_dn(as_before.machine.name, other))
    assert code == 22
    assert other in message


def test_what_is_no_good_backup_is_not_restored_from(as_before: Tried) -> None:
    other = "20200102T000000Z"
    dn = as_before.plain.leaf_dn(as_before.machine.name, other)
    as_before.plain.add_leaf(as_before.machine.name, other)
    as_before.plain.modify(dn, "replace sstProvisioningMode unretainSmallFiles", "replace sstProvisioningReturnValue 5")
    entry = until(
        "the leaf to be refused",
        lambda: found if (found := as_before.plain.read(dn))["sstProvisioningMode"] != ["unretainSmallFiles"] else None,
        30,
    )
    as_before.plain.delete_tree(dn)
    assert entry["sstProvisioningReturnValue"] == ["18"]
    assert "5 (cannot save machine state)" in entry["vmkeepMessage"][0]


def test_backing_out_leaves_machine_entry_and_retain_as_they_were(as_before: Tried) -> None:
    as_before.small()
    assert files_below(as_before.retain) != []
    as_before.plain.edit("back-out", as_before.machine.name, as_before.leaf)
    until("retain to be empty", lambda: not as_before.retain.exists(), 60)


def test_backing_out_with_the_large_files_there_leaves_all_as_it_was_too(as_before: Tried) -> None:
    as_before.small()
    as_before.large()
    assert len(files_below(as_before.retain)) > 4
    as_before.back_out()


def test_a_restore_that_is_backed_out_and_begun_anew_at_once_finds_retain_cleared(as_before: Tried) -> None:
    for _ in range(3):
        as_before.small()
        as_before.plain.edit("back-out", as_before.machine.name, as_before.leaf)


# What fails only once the machine has been stopped.


@pytest.fixture
def put_back(backed_up: Tried) -> Iterator[Tried]:
    """The machine is stopped, but runs on from where it was, on its own images, under its own definition."""
    before = backed_up.state()
    last = backed_up.lab.wait_for_count(backed_up.machine.name, 1)
    yield backed_up
    now = backed_up.lab.wait_for_count(backed_up.machine.name, 5)
    assert now > last, "its memory went on"
    backed_up.back_out()
    assert backed_up.state() == before
    assert left_in_retain(backed_up.machine) == []


def damage_memory(as_before: Tried) -> None:
    """A state file that is whole to everybody but QEMU; manifest and directory say it is what was made."""
    path = as_before.file("state")
    content = bytearray(path.read_bytes())
    at = content.index(b"QEVM", 92)
    content[at + 4 : at + 64] = bytes(60)
    path.write_bytes(content)
    manifest = as_before.folder / f"manifest.json.{as_before.leaf}"
    told = json.loads(manifest.read_text())
    for file in told["files"]:
        if file["role"] == "state":
            file["digest"] = f"blake3:{blake3(content).hexdigest()}"
    manifest.write_text(json.dumps(told))
    digest = f"blake3:{blake3(manifest.read_bytes()).hexdigest()}"
    dn = as_before.plain.leaf_dn(as_before.machine.name, as_before.leaf)
    as_before.plain.modify(dn, f"replace {DIGEST} {digest}")


def test_a_memory_that_qemu_refuses_puts_the_machine_back(put_back: Tried) -> None:
    state, manifest = put_back.file("state"), put_back.folder / f"manifest.json.{put_back.leaf}"
    dn = put_back.plain.leaf_dn(put_back.machine.name, put_back.leaf)
    kept = state.read_bytes(), manifest.read_bytes(), put_back.plain.read(dn)[DIGEST][0]
    damage_memory(put_back)
    try:
        put_back.small()
        put_back.large()
        code, message = put_back.try_step("restore", "restored")
    finally:
        state.write_bytes(kept[0])
        manifest.write_bytes(kept[1])
        put_back.plain.modify(dn, f"replace {DIGEST} {kept[2]}")
    assert code == 21, message
    assert "could not restore the machine" in message


def test_a_managed_save_is_refused_before_anything_is_copied(put_back: Tried) -> None:
    domain = put_back.machine.node.domain(put_back.machine.name)
    domain.managedSave()
    try:
        put_back.small()
        code, message = put_back.try_step("restore-large-files", "unretainedLargeFiles")
    finally:
        domain.create()
    assert code == 18, message
    assert "libvirt holds a managed save of it" in message
    assert [name for name in files_below(put_back.retain) if "qcow2" in name] == []


def test_an_images_directory_that_cannot_be_written_puts_the_machine_back(put_back: Tried) -> None:
    directory = put_back.machine.disks[0].parent
    put_back.small()
    put_back.large()
    subprocess.run(["chattr", "+i", directory], check=True, timeout=10)
    try:
        code, message = put_back.try_step("restore", "restored")
    finally:
        subprocess.run(["chattr", "-i", directory], check=True, timeout=10)
    assert code == 40, message
    assert "not permitted" in message


def test_images_that_went_missing_in_retain_are_asked_for_again(as_before: Tried) -> None:
    as_before.small()
    as_before.large()
    for path in as_before.retain.glob("*.qcow2.*"):
        path.unlink()
    code, message = as_before.try_step("restore", "restored")
    assert code == 37
    assert "unretainLargeFiles" in message
