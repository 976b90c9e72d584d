"""A set on its way from retain to the backup directory, with real files: nothing is lost, taken twice, or misread."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from lab import mounts, programs
from nodeagent.host.copying import Content
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, make_folder, open_folder
from nodeagent.operations.making import MadeFile, Making, write_making
from nodeagent.operations.retain import retain
from nodeagent.order import Firmware, Order, OrderDisk, Ownership
from nodeagent.steps import Step
from tests.conftest import require
from tests.orders import TIMESTAMP, disk_in, host_at, order_in
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode

SMALL = {"vm.state": "state", "vm.xml": "xml", "vm.ldif": "ldif"}
CONTENT = b"the disk at its instant"


def digest(content: bytes) -> str:
    return f"blake3:{blake3(content).hexdigest()}"


@pytest.fixture
def order(tmp_path: Path) -> Order:
    for name in ("images", "retain", "backup"):
        (tmp_path / name).mkdir()
    programs.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "images/d.qcow2", "1M"])
    order = order_in(tmp_path, Mode.RETAINING, disks=(disk_in(tmp_path),))
    lay(order, tmp_path)
    return order


def made(order: Order) -> Making:
    disk = order.disks[0]
    files = [MadeFile.model_validate({"name": name, "role": role}) for name, role in SMALL.items()]
    files.append(MadeFile(name=disk.kept, role="disk", target=disk.target, original_path=disk.path))
    return Making(
        machine=order.machine,
        uuid="u",
        timestamp=order.timestamp,
        node="n1",
        power=Power.RUNNING,
        consistency="state",
        files=tuple(files),
        versions={},
    )


def lay(order: Order, folder: Path, making: Making | None = None) -> None:
    """What a snapshot and its merge leave in retain."""
    with make_folder(order.paths.retain, host_at(folder).roots, Access()) as retain_folder:
        for name in SMALL:
            retain_folder.write(name, name.encode(), Access())
        retain_folder.write(order.disks[0].kept, CONTENT, Access())
        write_making(retain_folder, making or made(order))


def step(order: Order, folder: Path, name: str) -> Step:
    steps = {step.name: step for step in retain(order, host_at(folder))}
    if name != "directory":
        steps["directory"].apply({})
    return steps[name]


def carry(order: Order, folder: Path) -> None:
    step(order, folder, "carry d.qcow2").apply({})


def carried(order: Order) -> Path:
    return Path(order.paths.backup) / f"d.qcow2.{TIMESTAMP}"


@pytest.fixture
def on_another_filesystem(order: Order, tmp_path: Path) -> Iterator[Order]:
    require([] if os.geteuid() == 0 else ["mounting needs root: run the tests with sudo"])
    mounts.mount_ram(tmp_path / "backup", 4)
    yield order
    mounts.unmount_below(tmp_path / "backup")


def test_an_image_that_somebody_removed_lies_over_nothing(order: Order, tmp_path: Path) -> None:
    Path(order.disks[0].path).unlink()
    carry(order, tmp_path)
    assert carried(order).read_bytes() == CONTENT


def test_an_image_that_is_only_renamed_is_read_for_its_digest_within_the_bandwidth(
    order: Order, tmp_path: Path
) -> None:
    content = b"x" * (6 << 20)
    (Path(order.paths.retain) / "d.qcow2").write_bytes(content)
    began = time.monotonic()
    step(order.model_copy(update={"bandwidth_copy": 4}), tmp_path, "carry d.qcow2").apply({})
    assert time.monotonic() - began > 6 / 4 * 0.6
    assert carried(order).read_bytes() == content


def test_an_image_that_still_lies_over_the_kept_one_keeps_it(order: Order, tmp_path: Path) -> None:
    image = Path(order.disks[0].path)
    image.unlink()
    kept = Path(order.paths.retain) / "d.qcow2"
    host_at(tmp_path).images.create_overlay(image, kept, 1 << 20)
    with pytest.raises(Refused, match=r"still lies over .*; merge before retain") as refused:
        carry(order, tmp_path)
    assert refused.value.code is ReturnValue.UNMERGED_IMAGE
    assert kept.exists()
    assert not carried(order).exists()


def test_a_file_that_is_neither_here_nor_there_is_missed(order: Order, tmp_path: Path) -> None:
    (Path(order.paths.retain) / "d.qcow2").unlink()
    with pytest.raises(HostFailure, match="is neither in retain nor in the backup directory"):
        carry(order, tmp_path)


def test_a_disk_that_came_after_the_snapshot_is_named(order: Order, tmp_path: Path) -> None:
    """Somebody gave the machine another disk between its snapshot and its retain."""
    disk = OrderDisk(target="vdb", path=str(tmp_path / "images/new.qcow2"), kept="new.qcow2")
    more = order.model_copy(update={"disks": (*order.disks, disk)})
    with pytest.raises(HostFailure, match=r"name no new\.qcow2: the machine's disks have changed since"):
        step(more, tmp_path, "carry new.qcow2").apply({})


def test_notes_of_another_backup_are_not_taken_for_this_ones(order: Order, tmp_path: Path) -> None:
    lay(order, tmp_path, made(order).model_copy(update={"timestamp": "20250101T000000Z"}))
    with pytest.raises(HostFailure, match="speaks of vm at 20250101T000000Z"):
        carry(order, tmp_path)


def test_a_copy_that_reads_otherwise_than_it_was_made_is_not_kept(on_another_filesystem: Order, tmp_path: Path) -> None:
    order = on_another_filesystem
    carried(order).parent.mkdir(parents=True)
    carried(order).write_bytes(b"of an attempt that did not live to note its digest")
    lay(order, tmp_path, made(order).with_content("d.qcow2", Content(len(CONTENT), digest(b"something else"))))
    with pytest.raises(HostFailure, match=r"^d\.qcow2 reads as blake3:.* when it was made$"):
        carry(order, tmp_path)
    assert not carried(order).exists()
    lay(order, tmp_path, made(order).with_content("d.qcow2", Content(len(CONTENT), digest(CONTENT))))
    carry(order, tmp_path)
    assert carried(order).read_bytes() == CONTENT


def test_what_somebody_laid_into_retain_is_named_and_stays(order: Order, tmp_path: Path) -> None:
    foreign = Path(order.paths.retain) / "mine"
    foreign.write_text("a note")
    with pytest.raises(HostFailure, match="also holds mine, which is not ours; look at it and remove it"):
        step(order, tmp_path, "clear").apply({})
    assert foreign.exists()
    foreign.unlink()
    assert step(order, tmp_path, "clear").apply({}) == {}
    assert step(order, tmp_path, "clear").apply({}) == {}, "killed and done again, it finds nothing"


def test_the_files_of_the_firmware_are_carried_too(order: Order, tmp_path: Path) -> None:
    item = Firmware(role="nvram", path="", kept="vm.nvram")
    making = made(order)
    nvram = MadeFile(name=item.kept, role="nvram")
    lay(order, tmp_path, making.model_copy(update={"files": (*making.files, nvram)}))
    with open_folder(order.paths.retain, host_at(tmp_path).roots) as folder:
        folder.write(item.kept, b"variables", Access())
    update = {"firmware": (item,), "files": Ownership(mode=0o640)}
    for name in (item.kept, "d.qcow2"):
        step(order.model_copy(update=update), tmp_path, f"carry {name}").apply({})
    assert carried(order).with_name(f"vm.nvram.{TIMESTAMP}").stat().st_mode & 0o777 == 0o600, "it may hold secrets"
    assert carried(order).stat().st_mode & 0o777 == 0o640
