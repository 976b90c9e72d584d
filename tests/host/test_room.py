"""Room, asked of real filesystems before anything is touched: what does not fit is refused, or saved elsewhere."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import mounts
from nodeagent.host.errors import HostFailure
from nodeagent.operations.room import choose_ram_disk, require_free, require_room, require_same_filesystem
from nodeagent.order import Order
from tests.conftest import require
from tests.orders import disk_in, order_in
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.modes import Mode

MIB = 1 << 20
SMALL_MIB = 4


@pytest.fixture
def order(tmp_path: Path) -> Order:
    for name in ("images", "retain", "backup"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "d.qcow2").write_bytes(os.urandom(MIB))
    return order_in(tmp_path, Mode.SNAPSHOTTING)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own, of 4 MiB."""
    require([] if os.geteuid() == 0 else ["mounting needs root: run the tests with sudo"])
    folder = tmp_path / "small"
    folder.mkdir()
    mounts.mount_ram(folder, SMALL_MIB)
    yield folder
    mounts.unmount_below(folder)


def roots(order: Order) -> list[str]:
    return [str(Path(order.retain_root).parent)]


def test_disks_and_memory_have_to_fit_both_roots_with_a_margin(order: Order, small: Path) -> None:
    require_room(order, roots(order), MIB)
    for root in ("retain_root", "backup_root"):
        with pytest.raises(Refused, match=f"^vm: {small} has .* make room") as refused:
            require_room(order.model_copy(update={root: str(small)}), roots(order), SMALL_MIB * MIB)
        assert refused.value.code is ReturnValue.NOT_ENOUGH_SPACE
    free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
    require_free(order, roots(order), str(small), int(free / 1.06))
    with pytest.raises(Refused):
        require_free(order, roots(order), str(small), free)


def test_a_directory_that_goes_away_meanwhile_is_named(order: Order) -> None:
    Path(order.backup_root).rmdir()
    with pytest.raises(Refused, match=rf"^vm: {order.backup_root} does not say how much is free") as refused:
        require_room(order, roots(order), 0)
    assert refused.value.code is ReturnValue.NO_SPACE_INFORMATION


def test_images_on_another_filesystem_than_retain_are_refused(order: Order, small: Path) -> None:
    require_same_filesystem(order, roots(order))
    elsewhere = disk_in(small.parent).model_copy(update={"path": str(small / "d.qcow2")})
    with pytest.raises(Refused, match="lie on different filesystems") as refused:
        require_same_filesystem(order.model_copy(update={"disks": (elsewhere,)}), roots(order))
    assert refused.value.code is ReturnValue.CANNOT_RENAME_IMAGE


def test_a_directory_that_is_to_be_made_lies_where_its_parents_lie(order: Order, small: Path) -> None:
    def at(path: Path) -> Order:
        return order.model_copy(update={"disks": (disk_in(small.parent).model_copy(update={"path": str(path)}),)})

    require_same_filesystem(at(small.parent / "not/yet/made/d.qcow2"), roots(order))
    with pytest.raises(Refused, match="different filesystems"):
        require_same_filesystem(at(small / "not/yet/made/d.qcow2"), roots(order))
    with pytest.raises(HostFailure, match="outside the roots"):
        require_same_filesystem(at(Path("/nowhere/at/all/d.qcow2")), roots(order))


def test_a_ram_disk_is_used_where_the_memory_fits_and_nothing_is_left_of_the_look(order: Order, small: Path) -> None:
    assert choose_ram_disk(order, str(small), roots(order), MIB) == (str(small), "")
    assert list(small.iterdir()) == []
    chosen, warning = choose_ram_disk(order, str(small), roots(order), SMALL_MIB * MIB)
    assert chosen is None
    assert f"RAM disk {small} has only " in warning


def test_a_ram_disk_that_cannot_be_used_is_no_failure(order: Order, small: Path) -> None:
    (small / "a file").write_bytes(b"")
    for place, why in (
        (small / "missing", "No such file"),
        (small / "a file", "no directory"),
        (Path("/dev"), "roots"),
    ):
        chosen, warning = choose_ram_disk(order, str(place), roots(order), MIB)
        assert chosen is None
        assert warning.startswith(f"RAM disk {place} cannot be used (")
        assert why in warning


def test_no_ram_disk_is_wanted_without_a_plan_or_without_memory(order: Order, small: Path) -> None:
    assert choose_ram_disk(order, None, roots(order), MIB) == (None, "")
    assert choose_ram_disk(order, str(small / "missing"), roots(order), 0) == (None, "")
