"""The copy engine on real filesystems: content, holes, digest, and nothing left behind when it fails."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from nodeagent.host.copying import Content, copy_file, digest_file
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, Folder, open_folder
from tests.conftest import require

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Folder]:
    with open_folder(tmp_path, [str(tmp_path)]) as folder:
        yield folder


@pytest.fixture(params=["the same filesystem", "another filesystem"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    place = tmp_path / "target"
    place.mkdir()
    other = request.param == "another filesystem"
    if other:
        require([] if os.geteuid() == 0 else ["mounting needs root: run the tests with sudo"])
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)], check=True)
    try:
        with open_folder(place, [str(tmp_path)]) as folder:
            yield folder
    finally:
        if other:
            subprocess.run(["umount", str(place)], check=True)


def write_sparse(path: Path) -> bytes:
    """Data, a hole, data across a block's end, a hole at the end."""
    with path.open("wb") as file:
        file.write(os.urandom(3 * MIB + 5))
        file.seek(12 * MIB)
        file.write(os.urandom(MIB + 4097))
        file.truncate(32 * MIB + 3)
    return path.read_bytes()


def test_a_sparse_file_arrives_with_its_content_its_holes_and_its_digest(source: Folder, target: Folder) -> None:
    content = write_sparse(source.path / "a")
    done: list[int] = []
    copied = copy_file((source, "a"), (target, "b"), Access(mode=0o640), done.append)
    arrived = target.path / "b"
    assert arrived.read_bytes() == content
    assert copied == Content(len(content), f"blake3:{blake3(content).hexdigest()}")
    assert copied == digest_file(source, "a")
    assert arrived.stat().st_blocks * 512 < 6 * MIB
    assert arrived.stat().st_mode & 0o7777 == 0o640
    assert sum(done) == len(content)
    assert target.names() == ["b"]


@pytest.mark.parametrize("content", [b"", b"x", b"y" * MIB, b"z" * (MIB + 1)])
def test_any_length_arrives(content: bytes, source: Folder, target: Folder) -> None:
    (source.path / "a").write_bytes(content)
    assert copy_file((source, "a"), (target, "b"), Access()).size == len(content)
    assert (target.path / "b").read_bytes() == content


def test_nothing_is_written_over(source: Folder, target: Folder) -> None:
    (source.path / "a").write_bytes(b"new")
    (target.path / "b").write_bytes(b"old")
    with pytest.raises(HostFailure, match="nothing is written over"):
        copy_file((source, "a"), (target, "b"), Access())
    assert (target.path / "b").read_bytes() == b"old"
    assert target.names() == ["b"]


@pytest.mark.parametrize("target", ["another filesystem"], indirect=True)
def test_a_full_disk_leaves_nothing_behind(source: Folder, target: Folder) -> None:
    (source.path / "a").write_bytes(os.urandom(60 * MIB))
    with pytest.raises(OSError, match="No space left"):
        copy_file((source, "a"), (target, "b"), Access())
    assert target.names() == []


def test_a_link_is_not_followed(source: Folder, target: Folder) -> None:
    (source.path / "a").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        copy_file((source, "a"), (target, "b"), Access())


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_where_the_filesystem_knows_no_second_names_a_file_arrives_and_nothing_is_written_over(
    number: int, source: Folder, target: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_names: str, **_folders: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    (source.path / "a").write_bytes(b"new")
    copy_file((source, "a"), (target, "b"), Access())
    assert (target.path / "b").read_bytes() == b"new"
    (source.path / "a").write_bytes(b"newer")
    with pytest.raises(HostFailure, match="nothing is written over"):
        copy_file((source, "a"), (target, "b"), Access())
    assert (target.path / "b").read_bytes() == b"new"
    assert target.names() == ["b"]
