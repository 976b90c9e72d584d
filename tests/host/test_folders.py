"""Directories held by descriptor, at what a real filesystem says no to."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import mounts, programs
from nodeagent.host.copying import extents
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, Folder, make_folder, open_folder, remove_empty
from nodeagent.journal import Journal, Journals
from tests.conftest import require
from tests.orders import TIMESTAMP, order_in
from vmkeep.contract.modes import Mode


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with open_folder(tmp_path, [str(tmp_path)]) as folder:
        yield folder


@pytest.fixture
def unchangeable(tmp_path: Path) -> Iterator[Path]:
    """A directory in which nothing can be made or removed, not even by root; in it another that is empty."""
    require([] if os.geteuid() == 0 else ["chattr +i needs root: run the tests with sudo"])
    place = tmp_path / "unchangeable"
    (place / "empty").mkdir(parents=True)
    programs.run(["chattr", "+i", place])
    yield place
    programs.run(["chattr", "-i", place])


def test_a_small_file_that_became_large_is_not_read(folder: Folder) -> None:
    (folder.path / "notes").write_bytes(b"12345")
    assert folder.read("notes", most=5) == b"12345"
    with pytest.raises(HostFailure, match="notes is larger than 4 bytes"):
        folder.read("notes", most=4)


def test_a_second_name_is_given_once_and_never_over_another_file(folder: Folder) -> None:
    (folder.path / "a").write_bytes(b"a")
    for _ in range(2):
        folder.link_to("a", folder, "b")
    (folder.path / "c").write_bytes(b"c")
    with pytest.raises(HostFailure, match="c exists and is another file; nothing is written over"):
        folder.link_to("a", folder, "c")
    assert (folder.path / "c").read_bytes() == b"c"


def test_a_file_that_appears_meanwhile_is_not_renamed_over_where_there_are_no_second_names(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_names: str, **_folders: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    (folder.path / "a.partial").write_bytes(b"ours")
    (folder.path / "a").write_bytes(b"somebody's")
    with pytest.raises(HostFailure, match="a exists; nothing is written over"):
        folder.give_name("a.partial", "a")
    assert (folder.path / "a").read_bytes() == b"somebody's"


def test_a_file_in_a_directory_that_takes_none_is_not_half_written(unchangeable: Path) -> None:
    with open_folder(unchangeable, [str(unchangeable)]) as folder:
        with pytest.raises(PermissionError):
            folder.write("notes", b"12345", Access())
        assert folder.names() == ["empty"]


def test_parents_are_removed_as_far_as_they_are_empty(tmp_path: Path) -> None:
    deep = tmp_path / "a/b/c"
    deep.parent.mkdir(parents=True)
    remove_empty(deep, tmp_path, [str(tmp_path)])
    assert list(tmp_path.iterdir()) == [], "one that is missing keeps none of those above it"
    deep.mkdir(parents=True)
    (tmp_path / "a/mine").write_text("x")
    remove_empty(deep, tmp_path, [str(tmp_path)])
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"]


def test_an_empty_directory_that_cannot_be_removed_is_said(unchangeable: Path) -> None:
    with pytest.raises(PermissionError):
        remove_empty(unchangeable / "empty", unchangeable, [str(unchangeable)])


def test_a_directory_that_is_removed_as_often_as_it_is_made_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "mkdir", lambda *_given, **_more: None)  # somebody is always faster
    with (
        pytest.raises(HostFailure, match="a is removed as often as it is made"),
        make_folder(tmp_path / "a", [str(tmp_path)], Access()),
    ):
        pass


def test_a_device_that_tells_nothing_of_its_holes_is_no_file_to_copy() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match="Illegal seek"):
            list(extents(reading, 1))
    finally:
        os.close(reading)
        os.close(writing)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Journal]:
    """A journal on a disk that has room for no block more."""
    require([] if os.geteuid() == 0 else ["mounting needs root: run the tests with sudo"])
    place = tmp_path / "state"
    place.mkdir()
    mounts.mount_ram(place, 1)
    try:
        journal = Journals(place).create(order_in(tmp_path, Mode.MERGING))
        with (place / "fills").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        yield journal
    finally:
        mounts.unmount_below(place)


def test_half_a_line_on_a_full_disk_spoils_no_other(full: Journal) -> None:
    """A line that begins in the file's last block and ends in one that there is not."""
    noted: list[str] = []
    with pytest.raises(OSError, match="no room for the journal") as raised:
        for number in range(10_000):
            full.began(f"a step with a rather long name {number}", 1.0, must=True)
            noted.append(f"a step with a rather long name {number}")
    assert raised.value.errno == errno.ENOSPC
    full.ended("one that need not be durable", {})
    (full.path.parent / "fills").unlink()
    full.began("the next", 2.0, must=True)
    found = Journals(full.path.parent).find("vm", TIMESTAMP, Mode.MERGING)
    assert found is not None
    assert list(found.record.began) == [*noted, "the next"]
    assert found.record.ended == set()
