"""Clones on real filesystems: the same content on the same blocks, and a clear no where they cannot be."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lab import programs
from lab.filesystems import is_known, own_filesystem
from nodeagent.host import cloning
from nodeagent.host.cloning import can_clone, clone_file
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, Folder, open_folder
from tests.conftest import require

MIB = 1 << 20
SMALLEST_XFS = 320  # MiB: mkfs.xfs makes nothing smaller


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    require([] if os.geteuid() == 0 else ["mounting needs root: run the tests with sudo"])
    if not is_known("xfs"):
        pytest.skip("this kernel has no XFS")
    with own_filesystem(tmp_path_factory.mktemp("clones") / "xfs", SMALLEST_XFS, "xfs") as made:
        yield made.folder


@pytest.fixture
def source(xfs: Path, request: pytest.FixtureRequest) -> Iterator[Folder]:
    with _folder(xfs / f"{request.node.name}-source") as folder:
        yield folder


@pytest.fixture
def target(xfs: Path, request: pytest.FixtureRequest) -> Iterator[Folder]:
    with _folder(xfs / f"{request.node.name}-target") as folder:
        yield folder


def _folder(path: Path) -> AbstractContextManager[Folder]:
    path.mkdir()
    return open_folder(path, [str(path)])


def used(folder: Folder) -> int:
    programs.run(["sync", "--file-system", folder.path])
    found = os.fstatvfs(folder.descriptor)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_clone_has_the_content_and_takes_no_room(source: Folder, target: Folder) -> None:
    with (source.path / "a").open("wb") as file:
        file.write(os.urandom(16 * MIB + 5))
        file.truncate(64 * MIB + 3)
    before = used(target)
    clone_file((source, "a"), (target, "b"), Access(uid=12, gid=34, mode=0o640))
    assert used(target) - before < MIB
    assert (target.path / "b").read_bytes() == (source.path / "a").read_bytes()
    found = (target.path / "b").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (12, 34, 0o640)
    assert found.st_nlink == 1
    assert target.names() == ["b"]


def test_what_is_written_to_the_original_later_stays_out_of_the_clone(source: Folder, target: Folder) -> None:
    (source.path / "a").write_bytes(b"then" * MIB)
    clone_file((source, "a"), (target, "b"), Access())
    with (source.path / "a").open("r+b") as file:
        file.write(b"now!" * MIB)
    assert (target.path / "b").read_bytes() == b"then" * MIB


def test_a_clone_is_never_made_over_a_file(source: Folder, target: Folder) -> None:
    (source.path / "a").write_bytes(b"new")
    (target.path / "b").write_bytes(b"old")
    with pytest.raises(HostFailure, match="nothing is written over"):
        clone_file((source, "a"), (target, "b"), Access())
    assert (target.path / "b").read_bytes() == b"old"
    assert target.names() == ["b"]


def test_what_an_attempt_left_half_made_is_in_nobodys_way(source: Folder, target: Folder) -> None:
    (source.path / "a").write_bytes(b"new")
    (target.path / "b.partial").write_bytes(b"half")
    clone_file((source, "a"), (target, "b"), Access())
    assert (target.path / "b").read_bytes() == b"new"
    assert target.names() == ["b"]


def test_a_link_is_not_cloned(source: Folder, target: Folder) -> None:
    (source.path / "a").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        clone_file((source, "a"), (target, "b"), Access())
    assert target.names() == []


def test_xfs_can_and_nothing_is_left_of_the_trial(source: Folder, target: Folder) -> None:
    assert can_clone(source, target)
    assert source.names() == target.names() == []


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Folder]:
    """A folder on a filesystem that shares no blocks."""
    require([] if os.geteuid() == 0 else ["mounting needs root: run the tests with sudo"])
    with own_filesystem(tmp_path / "ext4", 16) as made, open_folder(made.folder, [str(made.folder)]) as folder:
        yield folder


def test_ext4_cannot_and_says_so_and_nothing_is_left(plain: Folder) -> None:
    before = plain.names()
    (plain.path / "a").write_bytes(b"content")
    assert not can_clone(plain, plain)
    with pytest.raises(HostFailure, match=r"a cannot be cloned to .*ext4: .*not supported; it can be copied"):
        clone_file((plain, "a"), (plain, "b"), Access())
    assert plain.names() == sorted([*before, "a"])


def test_two_filesystems_cannot_even_where_one_alone_can(source: Folder, plain: Folder) -> None:
    (source.path / "a").write_bytes(b"content")
    assert not can_clone(source, plain)
    assert not can_clone(plain, source)
    with pytest.raises(HostFailure, match="cannot be cloned"):
        clone_file((source, "a"), (plain, "b"), Access())


def test_it_is_tried_once_for_a_pair_of_filesystems(
    source: Folder, target: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert can_clone(source, target)
    monkeypatch.setattr(os, "open", _fail)  # a second trial could not be made
    assert can_clone(source, target)


def _fail(*_given: object, **_more: object) -> int:
    raise OSError(errno.EIO, "nothing may be opened now")


def test_a_full_disk_is_no_answer_for_good(source: Folder, target: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloning, "_known", {})
    with monkeypatch.context() as full:
        full.setattr(os, "write", _no_space)
        assert not can_clone(source, target)
    assert can_clone(source, target)


def _no_space(*_given: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fails_is_not_taken_for_one_that_cannot_clone(
    source: Folder, target: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_given: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (source.path / "a").write_bytes(b"content")
    monkeypatch.setattr(fcntl, "ioctl", fails)
    with pytest.raises(OSError, match="Input/output error"):
        clone_file((source, "a"), (target, "b"), Access())
    assert target.names() == []
