"""Images that lead elsewhere, in a set or in a machine: refused with a reason, nothing read, the machine as before."""

from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from lab.cluster import Lab
from lab.machines import MachineSpec
from tests import crafted_images
from tests.cluster.plain import Plain, files_below
from tests.cluster.stolen import Stolen
from tests.crafted_images import CRAFTED
from tests.watched_files import watched

IN_A_SET = ("a host's file below", "JSON below", "the network below", "data elsewhere", "data elsewhere, not yet")


@pytest.fixture
def stolen(stolen_set: Stolen) -> Iterator[Stolen]:
    """Its set is whole again afterwards, and the machine was never stopped, its images never touched."""
    machine = stolen_set.machine
    before = machine.node.qemu(machine.name), machine.disks[0].stat().st_ino
    image = disk_of(stolen_set)
    content = image.read_bytes()
    yield stolen_set
    image.write_bytes(content)
    stolen_set.vouch()
    stolen_set.back_out()
    assert (machine.node.qemu(machine.name), machine.disks[0].stat().st_ino) == before


def disk_of(stolen: Stolen) -> Path:
    return next(stolen.folder.glob("*.qcow2.*"))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "outside" / "secret"
    path.parent.mkdir()
    path.write_bytes(b"of the host" * 100_000)
    return path


@pytest.mark.parametrize("case", IN_A_SET)
def test_an_image_of_a_set_that_names_another_file_is_not_brought_back(
    case: str, stolen: Stolen, secret: Path, tmp_path: Path
) -> None:
    make, _ = CRAFTED[case]
    disk_of(stolen).write_bytes(make(crafted_images.plain(tmp_path), str(secret).encode()))
    stolen.vouch()
    with watched(secret.parent) as seen:
        assert stolen.ask("restore-small-files", "unretainedSmallFiles")[:2] == ("unretainedSmallFiles", 0)
        mode, code, message = stolen.ask("restore-large-files", "unretainedLargeFiles")
        assert seen.events() == set()
    assert (mode, code) == ("unretainingLargeFiles", 38), message
    assert disk_of(stolen).name.split(".")[0] in message
    assert not any(".qcow2" in name or ".state" in name for name in files_below(stolen.retain))


@pytest.mark.parametrize("case", ["a host's file below", "data elsewhere"])
def test_an_image_that_was_changed_after_it_was_brought_back_is_not_put_in_place(
    case: str, stolen: Stolen, secret: Path, tmp_path: Path
) -> None:
    for edit, done in (
        ("restore-small-files", "unretainedSmallFiles"),
        ("restore-large-files", "unretainedLargeFiles"),
    ):
        assert stolen.ask(edit, done)[:2] == (done, 0)
    make, _ = CRAFTED[case]
    [brought] = stolen.retain.glob("*.qcow2.*")
    brought.write_bytes(make(crafted_images.plain(tmp_path), str(secret).encode()))
    with watched(secret.parent) as seen:
        mode, code, message = stolen.ask("restore", "restored")
        assert seen.events() == set()
    assert (mode, code) == ("restoring", 38), message


@pytest.mark.parametrize("said", ["raw", "qcow2"])
def test_a_guest_that_writes_a_header_to_its_raw_disk_gets_no_file_of_the_host(
    said: str, agents: Lab, plain: Plain, secret: Path, tmp_path: Path
) -> None:
    """Raw disks are not saved; and one that is said to be none shows a backing file that no backup of ours left."""
    machine = agents.add_machine(MachineSpec(kind="bios", state="off"))
    content = crafted_images.raw_disk(crafted_images.plain(tmp_path), str(secret).encode())
    machine.disks[0].write_bytes(content)
    described = machine.node.domain(machine.name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    machine.node.connection().defineXML(described.replace("type='qcow2'", f"type='{said}'"))
    with watched(secret.parent) as seen:
        code, message = plain.fail(machine.name)
        assert seen.events() == set()
    assert (code, "only qcow2" in message) == ((36, True) if said == "raw" else (104, False)), message
    assert machine.disks[0].read_bytes() == content
    assert not (machine.node.retain / "vm-persistent").exists() or secret.name not in files_below(machine.node.retain)
