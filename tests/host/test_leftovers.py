"""What earlier backups left in retain: it goes where no set can come of it any more, and stays wherever one can."""

import subprocess
from pathlib import Path

import pytest

from nodeagent.host.copying import Content
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, make_folder
from nodeagent.operations.choosing import as_made
from nodeagent.operations.leftovers import finish_earlier
from nodeagent.operations.making import MadeFile, Making, write_making
from nodeagent.operations.merge import merge
from nodeagent.order import Order
from nodeagent.steps import Host
from tests.cluster.plain import files_below
from tests.orders import TIMESTAMP, disk_in, host_at, order_in
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import Power
from vmkeep.contract.methods import Method, Route
from vmkeep.contract.modes import Mode
from vmkeep.contract.paths import MANIFEST_NAME

EARLIER, NOW = TIMESTAMP, "20260102T000000Z"
LAID = ("vm.state", "vm.xml", "vm.ldif")
COPY = Content(3, "blake3:" + "0" * 64)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return host_at(tmp_path)


@pytest.fixture
def earlier(tmp_path: Path) -> Order:
    """The merge of a backup by overlays, of a machine with two disks and its own images."""
    for name in ("images", "retain", "backup"):
        (tmp_path / name).mkdir()
    disks = tuple(disk_in(tmp_path, target, f"{target}.qcow2") for target in ("vda", "vdb"))
    for disk in disks:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk.path, "1M"], check=True, timeout=30)
    return order_in(
        tmp_path,
        Mode.MERGING,
        power=Power.OFF,
        disks=disks,
        method=Method.LIVE,
        route=Route(freezes=True, clones=False, once=True),
    )


def made(order: Order, method: Method = Method.LIVE, power: Power = Power.RUNNING) -> Making:
    files = [MadeFile(name=name, role="state") for name in LAID]
    files += [MadeFile(name=disk.kept, role="disk", target=disk.target) for disk in order.disks]
    return Making(
        machine="vm",
        uuid="u",
        timestamp=order.timestamp,
        node="n1",
        power=power,
        method=method,
        consistency="state",
        files=tuple(files),
        versions={},
    )


def lay(order: Order, host: Host, making: Making | None, *copies: str) -> list[str]:
    """What a snapshot leaves in retain, and copies that a merge has made there."""
    with make_folder(order.paths.retain, host.roots, Access()) as retain:
        for name in (*LAID, *copies):
            retain.write(name, b"any", Access())
        if making is not None:
            write_making(retain, making)
        return retain.names()


def after_the_next(order: Order, host: Host) -> list[str]:
    """What lies in retain once the next snapshot has seen to what is left."""
    finish_earlier(order.model_copy(update={"timestamp": NOW, "mode": Mode.SNAPSHOTTING}), host, {})
    folder = Path(order.paths.retain)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("copies", [(), ("vda.qcow2",), ("vda.qcow2.partial",)])
def test_what_became_no_set_goes_with_the_next_snapshot(earlier: Order, host: Host, copies: tuple[str, ...]) -> None:
    lay(earlier, host, made(earlier), *copies)
    assert after_the_next(earlier, host) == []
    assert files_below(Path(earlier.retain_root)) == []


def test_a_copy_in_the_backup_directory_goes_with_it(earlier: Order, host: Host) -> None:
    lay(earlier, host, made(earlier).with_content("vda.qcow2", COPY))
    with make_folder(earlier.paths.backup, host.roots, Access()) as backup:
        backup.write(f"vda.qcow2.{EARLIER}", b"any", Access())
    after_the_next(earlier, host)
    assert list(Path(earlier.backup_root).iterdir()) == []


def test_a_set_whose_images_were_all_copied_stays_to_be_finished(earlier: Order, host: Host) -> None:
    left = lay(earlier, host, made(earlier), "vda.qcow2", "vdb.qcow2")
    assert after_the_next(earlier, host) == left


def test_one_whose_images_lie_in_a_backup_directory_that_is_away_stays(earlier: Order, host: Host) -> None:
    making = made(earlier).with_content("vda.qcow2", COPY).with_content("vdb.qcow2", COPY)
    left = lay(earlier, host, making)
    assert after_the_next(earlier, host) == left


@pytest.mark.parametrize(("method", "power"), [(Method.SAVE, Power.RUNNING), (Method.LIVE, Power.OFF)])
def test_what_was_saved_otherwise_stays(earlier: Order, host: Host, method: Method, power: Power) -> None:
    left = lay(earlier, host, made(earlier, method, power))
    assert after_the_next(earlier, host) == left


def test_what_is_not_known_to_be_ours_stays(earlier: Order, host: Host) -> None:
    left = lay(earlier, host, None)
    assert after_the_next(earlier, host) == left
    foreign = lay(earlier, host, made(earlier.model_copy(update={"timestamp": NOW})))
    assert after_the_next(earlier, host) == foreign


def test_a_snapshot_that_ended_before_its_notes_goes_but_for_what_no_snapshot_makes(earlier: Order, host: Host) -> None:
    """Its node was lost in it: the guest's memory would lie there for ever."""
    lay(earlier, host, None)
    retain = Path(earlier.paths.retain)
    for name in (earlier.paths.state, earlier.paths.ldif, f"{earlier.paths.xml}.partial", "somebody's"):
        (retain / name).write_bytes(b"any")
    ended = earlier.model_copy(update={"abandoned": (EARLIER,), "unnoted": (EARLIER,)})
    assert after_the_next(ended, host) == ["somebody's"]


@pytest.mark.parametrize("left", [(), ("vm.state", "before")])
@pytest.mark.parametrize("abandoned", [(), (EARLIER,)])
def test_a_set_that_is_there_loses_nothing_whatever_lies_in_retain(
    earlier: Order, host: Host, left: tuple[str, ...], abandoned: tuple[str, ...]
) -> None:
    """A directory is left in retain where somebody moved away what a restore kept, or power was lost."""
    retain = Path(earlier.paths.retain)
    retain.mkdir(parents=True)
    for name in left:
        (retain / name).write_bytes(b"any")
    with make_folder(earlier.paths.backup, host.roots, Access()) as backup:
        for name in (*LAID, *(disk.kept for disk in earlier.disks), MANIFEST_NAME):
            backup.write(f"{name}.{EARLIER}", b"any", Access())
        kept = backup.names()
    order = earlier.model_copy(update={"abandoned": abandoned, "unnoted": abandoned})
    assert after_the_next(order, host) == sorted(left)
    assert sorted(path.name for path in Path(earlier.paths.backup).iterdir()) == sorted(kept)


def test_nothing_elsewhere_goes_whatever_the_notes_say(earlier: Order, host: Host) -> None:
    making = made(earlier)
    lay(earlier, host, making.model_copy(update={"files": (*making.files, MadeFile(name="../kept", role="disk"))}))
    kept = Path(earlier.paths.retain).parent / "kept"
    kept.write_text("somebody's")
    after_the_next(earlier, host)
    assert kept.exists()


def test_a_merge_that_fails_before_all_is_copied_leaves_nothing(earlier: Order, host: Host) -> None:
    lay(earlier, host, made(earlier))
    with make_folder(earlier.paths.backup, host.roots, Access()) as backup:
        backup.write(f"vda.qcow2.{EARLIER}.partial", b"of an agent that was killed", Access())
    take_back(earlier, host)
    assert files_below(Path(earlier.retain_root)) == []
    assert list(Path(earlier.backup_root).iterdir()) == []


def test_a_merge_that_fails_when_all_is_copied_can_be_finished(earlier: Order, host: Host) -> None:
    making = made(earlier).with_content("vda.qcow2", COPY).with_content("vdb.qcow2", COPY)
    left = lay(earlier, host, making)
    with make_folder(earlier.paths.backup, host.roots, Access()) as backup:
        for disk in earlier.disks:
            backup.write(earlier.paths.kept_name(disk.kept), b"any", Access())
        copies = backup.names()
    take_back(earlier, host)
    assert sorted(path.name for path in Path(earlier.paths.retain).iterdir()) == left
    assert sorted(path.name for path in Path(earlier.paths.backup).iterdir()) == copies


def take_back(order: Order, host: Host) -> None:
    """The way back of a merge that has begun to copy both disks."""
    for step in reversed([step for step in merge(order, host) if step.name.startswith(("frozen", "copy"))]):
        step.undo({})


def test_a_merge_whose_notes_are_gone_is_refused_once_the_images_are_whole(earlier: Order, host: Host) -> None:
    lay(earlier, host, None)
    image = Path(earlier.disks[0].path)
    below = image.rename(image.with_name("below"))
    host.images.create_overlay(image, below, 1 << 20)
    [step] = merge(as_made(earlier, host), host)
    with pytest.raises(Refused, match=rf"^vm: the backup {EARLIER} cannot be finished: .*back it up again") as refused:
        step.apply({})
    assert ".manifest.making is missing" in refused.value.sentence
    assert host.header(image).backing_file is None


def test_a_merge_whose_directory_in_retain_is_gone_is_refused(earlier: Order, host: Host) -> None:
    [step] = merge(as_made(earlier, host), host)
    with pytest.raises(Refused, match=f"{EARLIER} is gone"):
        step.apply({})


def test_an_overlay_that_holds_data_is_never_cleared(earlier: Order, host: Host) -> None:
    lay(earlier, host, made(earlier))
    image = Path(earlier.disks[0].path)
    overlay = image.with_name(f".{image.name}.{EARLIER}")
    host.images.create_overlay(overlay, image, 1 << 20)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write 0 64k", overlay], check=True, timeout=30, capture_output=True
    )
    with pytest.raises(HostFailure, match="holds what vm wrote"):
        after_the_next(earlier, host)
    assert (Path(earlier.paths.retain) / "vm.state").exists()
