"""Copying beside overlays that grow: it ends while all of them can be written back, whoever fills the disk."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from lab.filesystems import own_filesystem
from nodeagent.host.copying import Pace, Stopped
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Folder, open_folder
from nodeagent.operations import overlay_growth
from nodeagent.operations.overlay_growth import OverlayGrowth
from nodeagent.order import Order, OrderDisk
from nodeagent.steps import Host
from tests.conftest import require
from tests.orders import TIMESTAMP, host_at, order_in
from vmkeep.contract.modes import Mode

MIB = 1 << 20
SEVERAL_LOOKS = 1.5


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of about 60 MiB with the frozen image of a machine, and its overlay."""
    require([] if os.geteuid() == 0 else ["mounting needs root: run the tests with sudo"])
    with own_filesystem(tmp_path / "images", 64) as made:
        taken(made.folder / "d.qcow2", 8)
        taken(made.folder / f".d.qcow2.{TIMESTAMP}", 1)
        yield made.folder


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return host_at(tmp_path)


@pytest.fixture
def order(images: Path, tmp_path: Path) -> Order:
    return order_in(tmp_path, Mode.MERGING, retain_root=str(images), backup_root=str(images))


def taken(path: Path, mib: int) -> None:
    """A file that takes up so much."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, mib * MIB)


def is_stopped(pace: Pace) -> bool:
    assert pace.stop is not None
    return pace.stop.wait(SEVERAL_LOOKS)


def stopped(watched: AbstractContextManager[Pace]) -> str:
    """What is said when a copy is stopped at such a pace."""
    with pytest.raises(HostFailure) as raised, watched as pace:
        assert is_stopped(pace)
        raise Stopped
    return str(raised.value)


def test_copying_goes_on_while_all_overlays_can_be_written_back(images: Path, order: Order, host: Host) -> None:
    taken(images / ".other.qcow2.20260101T000001Z", 12)
    with OverlayGrowth(order, host).watched() as pace:
        assert not is_stopped(pace)


def test_overlays_of_several_machines_together_end_it(images: Path, order: Order, host: Host) -> None:
    with pytest.raises(HostFailure, match="make room"), OverlayGrowth(order, host).watched() as pace:
        assert not is_stopped(pace)
        for number in range(3):
            taken(images / f".other-{number}.qcow2.20260101T00000{number}Z", 8)
        assert is_stopped(pace)
        raise Stopped


def test_a_disk_that_somebody_else_fills_ends_it(images: Path, order: Order, host: Host) -> None:
    taken(images / "somebody's", 42)
    assert "make room" in stopped(OverlayGrowth(order, host).watched())


def test_what_is_still_to_be_copied_to_the_same_disk_needs_room_too(images: Path, order: Order, host: Host) -> None:
    taken(images / "somebody's", 35)
    with OverlayGrowth(order, host).watched() as pace:
        assert not is_stopped(pace)
    with open_folder(images, host.roots) as folder:
        assert "make room" in stopped(OverlayGrowth(order, host).watched(copying(folder)))
        taken(images / "somebody's", 28)
        taken(images / "d.copy.partial", 7)
        with OverlayGrowth(order, host).watched(copying(folder)) as pace:
            assert not is_stopped(pace), "what is copied already is not reckoned twice"


def copying(folder: Folder) -> tuple[tuple[Folder, str], tuple[Folder, str]]:
    return (folder, "d.qcow2"), (folder, "d.copy")


def test_the_plans_limit_is_one_of_this_machine_alone(images: Path, order: Order, host: Host) -> None:
    limited = order.model_copy(update={"overlay_limit": 2})
    taken(images / ".other.qcow2.20260101T000001Z", 3)
    with OverlayGrowth(limited, host).watched() as pace:
        assert not is_stopped(pace)
    taken(images / f".d.qcow2.{TIMESTAMP}", 3)
    assert "more than 2 MiB" in stopped(OverlayGrowth(limited, host).watched())


def test_overlays_that_cannot_be_looked_at_for_a_moment_are_looked_at_again(
    images: Path, order: Order, host: Host, tmp_path: Path
) -> None:
    here, away = tmp_path / "here", tmp_path / "away"
    here.mkdir()
    disk = OrderDisk(target="vda", path=str(here / "d.qcow2"), kept="d.qcow2")
    limited = order.model_copy(update={"overlay_limit": 1, "disks": (disk,)})
    with pytest.raises(HostFailure, match="more than 1 MiB"), OverlayGrowth(limited, host).watched() as pace:
        here.rename(away)
        assert not is_stopped(pace)
        taken(away / f".d.qcow2.{TIMESTAMP}", 2)
        away.rename(here)
        assert is_stopped(pace)
        raise Stopped


def test_overlays_that_nobody_can_look_at_any_more_end_it(
    order: Order, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlay_growth, "_BLIND_SECONDS", 0.6)
    watched = OverlayGrowth(order, replace(host, roots=[str(tmp_path / "elsewhere")])).watched()
    assert "cannot be looked at any more: " in stopped(watched)


def test_an_agent_that_ends_is_no_failure(order: Order, host: Host) -> None:
    ending = replace(host)
    with pytest.raises(Stopped), OverlayGrowth(order, ending).watched() as pace:
        ending.stop.set()
        assert is_stopped(pace)
        raise Stopped
