"""The merge of a machine that is off, with real images: its digest is taken once, and not for a merge that fails."""

import subprocess
import time
from dataclasses import replace
from pathlib import Path, PurePath, PurePosixPath

import pytest

from nodeagent.host.errors import HostFailure, TookTooLong
from nodeagent.host.folders import Access, make_folder, open_folder
from nodeagent.host.images import Images
from nodeagent.host.programs import run
from nodeagent.operations.making import MadeFile, Making, read_making, write_making
from nodeagent.operations.merge import merge
from nodeagent.operations.streaming import make_whole
from nodeagent.order import Order
from nodeagent.steps import Host
from tests.orders import disk_in, host_at, order_in
from vmkeep.contract.machine import Power
from vmkeep.contract.methods import Route
from vmkeep.contract.modes import Mode

MIB, GIB = 1 << 20, 1 << 30
RENAMES = Route(freezes=False, clones=False, once=False, renames=True)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return host_at(tmp_path)


@pytest.fixture
def order(tmp_path: Path, host: Host) -> Order:
    """An image over its retained one, and the notes of the set."""
    for name in ("images", "retain", "backup"):
        (tmp_path / name).mkdir()
    disk = disk_in(tmp_path, size=MIB)
    order = order_in(tmp_path, Mode.MERGING, power=Power.OFF, disks=(disk,), route=RENAMES)
    making = Making(
        machine="vm",
        uuid="u",
        timestamp=order.timestamp,
        node="n1",
        power=Power.OFF,
        consistency="off",
        files=(MadeFile(name="d.qcow2", role="disk"),),
        versions={},
    )
    with make_folder(order.paths.retain, host.roots, Access()) as retain:
        write_making(retain, making)
    backing = order.paths.retain / "d.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(backing), str(MIB)], check=True)
    host.images.create_overlay(PurePosixPath(disk.path), backing, MIB)
    return order


def known(order: Order, host: Host) -> MadeFile:
    with open_folder(order.paths.retain, host.roots) as retain:
        [file] = read_making(retain).files
    return file


def test_the_retained_images_digest_is_noted_and_read_only_once(order: Order, host: Host) -> None:
    [step] = merge(order, host)
    step.apply({})
    first = known(order, host)
    assert first.digest is not None
    assert first.size == Path(order.paths.retain / "d.qcow2").stat().st_size
    Path(order.paths.retain / "d.qcow2").write_bytes(b"whatever")
    step.apply({})
    assert known(order, host) == first


def test_the_retained_image_is_read_for_its_digest_within_the_bandwidth_of_the_merge(order: Order, host: Host) -> None:
    host.images.flatten(PurePosixPath(order.disks[0].path))  # nothing else is left to do
    Path(order.paths.retain / "d.qcow2").write_bytes(b"x" * 6 * MIB)
    [step] = merge(order.model_copy(update={"bandwidth": 4}), host)
    began = time.monotonic()
    step.apply({})
    assert time.monotonic() - began > 6 / 4 * 0.6
    assert known(order, host).size == 6 * MIB


def test_no_digest_is_taken_where_retain_copies_the_image_and_reads_it_then(order: Order, host: Host) -> None:
    [step] = merge(order.model_copy(update={"route": replace(RENAMES, renames=False)}), host)
    step.apply({})
    assert known(order, host).digest is None


def test_a_merge_that_fails_says_so_at_once_and_does_not_read_a_large_image_to_its_end(
    order: Order, host: Host
) -> None:
    with Path(order.paths.retain / "d.qcow2").open("wb") as file:
        file.truncate(1024 * GIB)
    [step] = merge(order, replace(host, images=Images(10, 10)))
    began = time.monotonic()
    with pytest.raises(HostFailure, match="still names a backing file"):
        step.apply({})
    assert time.monotonic() - began < 60
    assert known(order, host).digest is None


def test_a_program_that_took_too_long_is_not_run_again_at_once(order: Order, host: Host) -> None:
    """Its time is a day: a few rounds of it would keep the machine from being started for most of a week."""
    runs = []

    class Slow(Images):
        def flatten(self, path: PurePath, bandwidth: int = 0) -> None:
            runs.append((path, bandwidth))
            run("sleep", ["60"], 0.2)

    with pytest.raises(TookTooLong, match=r"did not end within 0\.2 s"):
        make_whole(replace(host, images=Slow()), order, order.disks[0])
    assert len(runs) == 1


@pytest.mark.parametrize("written", [False, True], ids=["never written to", "written to"])
def test_an_image_that_lost_its_backing_files_name_before_its_data_was_there_is_made_whole(
    order: Order, host: Host, tmp_path: Path, written: bool
) -> None:
    """As a QEMU leaves it that dies between the last write of a pull and its next flush."""
    live, below = Path(order.disks[0].path), Path(order.paths.retain / "d.qcow2")
    io("write -P 7 0 512k", below)
    if written:
        io("write -P 9 64k 64k", live)
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", live], check=True)
    mark = below.with_name(".d.qcow2.merging")
    mark.write_text(str(live.stat().st_ino))
    [step] = merge(order, host)
    step.apply({})
    assert not mark.exists()
    below.unlink()
    io("read -P 7 0 64k", live)
    io("read -P 9 64k 64k" if written else "read -P 7 64k 64k", live)
    io("read -P 7 128k 384k", live)
    assert host.header(PurePosixPath(live)).backing_file is None


@pytest.mark.parametrize("noted", ["", "1"], ids=["no merge began", "another image was being merged"])
def test_an_image_that_somebody_put_there_is_not_put_over_the_retained_one(
    order: Order, host: Host, noted: str
) -> None:
    """A restore by hand, say: what lies below would show through where it has nothing."""
    live, below = Path(order.disks[0].path), Path(order.paths.retain / "d.qcow2")
    io("write -P 7 0 512k", below)
    if noted:
        below.with_name(".d.qcow2.merging").write_text(noted)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", live, str(MIB)], check=True)
    [step] = merge(order, host)
    step.apply({})
    io("read -P 0 0 512k", live)


def io(command: str, image: Path) -> None:
    done = subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, image], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "failed" not in done.stdout, done.stdout


def test_a_backup_directory_that_is_away_keeps_no_merge_waiting(order: Order, host: Host) -> None:
    """Nothing of it lies there; retain says what is missing."""
    backup = Path(order.backup_root)
    backup.rmdir()
    for _ in range(2):
        [step] = merge(order, host)
        step.apply({})
        assert host.header(PurePosixPath(order.disks[0].path)).backing_file is None
        assert known(order, host).digest is not None
        backup.unlink(missing_ok=True)
        backup.symlink_to("/proc/self/nowhere")
