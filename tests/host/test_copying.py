"""The copy engine on real filesystems: content, holes, digest, pace, and nothing left behind when it fails."""

import contextlib
import ctypes
import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from blake3 import blake3

from lab.filesystems import is_known, own_filesystem
from nodeagent.host.copying import AT_ONCE, Content, Pace, Stopped, copy_file, digest_file
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, Folder, open_folder
from nodeagent.host.priority import disk_class
from nodeagent.host.trail import Trail
from tests.conftest import require

MIB = 1 << 20
OTHERS = {"ext4": 40, "xfs": 320}  # MiB: one that is soon full, and the smallest that mkfs.xfs makes
IDLE = 3  # IOPRIO_CLASS_IDLE
Places: TypeAlias = Callable[[str], Path]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Folder]:
    with open_folder(tmp_path, [str(tmp_path)]) as folder:
        yield folder


@pytest.fixture(scope="module")
def filesystems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """Mounts each kind when it is first asked for."""
    with contextlib.ExitStack() as mounted:
        places: dict[str, Path] = {}

        def place(kind: str) -> Path:
            if kind not in places:
                require([] if os.geteuid() == 0 else ["mounting needs root: run the tests with sudo"])
                if not is_known(kind):
                    pytest.skip(f"this kernel has no {kind}")
                folder = tmp_path_factory.mktemp(kind) / kind
                places[kind] = mounted.enter_context(own_filesystem(folder, OTHERS[kind], kind)).folder
            return places[kind]

        yield place


@pytest.fixture(params=["the same filesystem", *OTHERS])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    kind = request.param
    place = request.getfixturevalue("filesystems")(kind) / tmp_path.name if kind in OTHERS else tmp_path / "target"
    place.mkdir()
    with open_folder(place, [str(place)]) as folder:
        yield folder
        for name in folder.names():
            folder.remove(name)


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Folder]:
    """For what is the same on every filesystem."""
    place = tmp_path / "target"
    place.mkdir()
    with open_folder(place, [str(place)]) as folder:
        yield folder


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
    copied = copy_file((source, "a"), (target, "b"), Access(12, 34, 0o640), done.append)
    arrived = target.path / "b"
    assert arrived.read_bytes() == content
    assert copied == Content(len(content), f"blake3:{blake3(content).hexdigest()}")
    assert copied == digest_file(source, "a")
    assert arrived.stat().st_blocks * 512 < 6 * MIB
    found = arrived.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (12, 34, 0o640)
    assert found.st_nlink == 1
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


@pytest.mark.parametrize("target", ["ext4"], indirect=True)
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


def test_what_an_attempt_left_half_made_is_in_nobodys_way(source: Folder, beside: Folder) -> None:
    (source.path / "a").write_bytes(b"new")
    (beside.path / "b.partial").write_bytes(b"longer than what is new")
    copy_file((source, "a"), (beside, "b"), Access())
    assert (beside.path / "b").read_bytes() == b"new"
    assert beside.names() == ["b"]


def test_of_two_who_make_one_file_the_later_has_it_and_its_half_is_given_no_name(beside: Folder) -> None:
    """Two nodes at one set, for a moment."""
    earlier, later = beside.making("b"), beside.making("b")
    os.write(earlier.__enter__(), b"whole")
    writing = later.__enter__()
    os.write(writing, b"half")
    with pytest.raises(HostFailure, match=r"b.partial is not ours any more; somebody else makes b by now"):
        earlier.__exit__(None, None, None)
    assert beside.names() == ["b.partial"]
    os.write(writing, b" and half")
    later.__exit__(None, None, None)
    assert (beside.names(), (beside.path / "b").read_bytes()) == (["b"], b"half and half")


def test_whose_file_was_removed_by_another_node_hears_why_he_had_to_stop(
    beside: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS says of an open file that it is stale, looked at and closed; no filesystem here does."""
    known, close = os.fstat, os.close

    def stale(descriptor: int) -> os.stat_result:
        if descriptor in lost:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return known(descriptor)

    def closed(descriptor: int) -> None:
        close(descriptor)
        if descriptor in lost:
            lost.remove(descriptor)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    lost: set[int] = set()
    monkeypatch.setattr(os, "close", closed)
    with pytest.raises(Stopped, match="told to"), beside.making("b") as writing:
        (beside.path / "b.partial").unlink()
        (beside.path / "b.partial").write_bytes(b"of the other")
        monkeypatch.setattr(os, "fstat", stale)
        lost.add(writing)
        raise Stopped("told to")
    assert beside.names() == ["b.partial"]


def test_the_name_appears_when_the_whole_file_is_there(source: Folder, beside: Folder) -> None:
    (source.path / "a").write_bytes(os.urandom(3 * MIB))
    seen: set[str] = set()
    copy_file((source, "a"), (beside, "b"), Access(), lambda _done: seen.update(beside.names()))
    assert seen == {"b.partial"}
    assert beside.names() == ["b"]


@pytest.mark.parametrize("length", [2 * MIB, 30 * MIB])
def test_a_file_that_changes_its_length_meanwhile_is_refused(length: int, source: Folder, beside: Folder) -> None:
    (source.path / "a").write_bytes(os.urandom(20 * MIB))

    def change(_done: int) -> None:
        os.truncate(source.path / "a", length)

    with pytest.raises(HostFailure, match=r"shorter|changed its length"):
        copy_file((source, "a"), (beside, "b"), Access(), change)
    assert beside.names() == []


@pytest.mark.parametrize("length", [2 * MIB, 30 * MIB])
def test_no_digest_is_taken_of_a_file_that_changes_its_length(length: int, source: Folder) -> None:
    (source.path / "a").write_bytes(os.urandom(20 * MIB))
    with pytest.raises(HostFailure, match=r"shorter|changed its length"):
        digest_file(source, "a", lambda _done: os.truncate(source.path / "a", length))


def test_a_failed_fsync_ends_the_copy_and_is_not_tried_again(
    source: Folder, beside: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def fsync(descriptor: int) -> None:
        tried.append(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (source.path / "a").write_bytes(b"content")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        copy_file((source, "a"), (beside, "b"), Access())
    assert len(tried) == 1
    assert beside.names() == []


def stopped_after(begun: threading.Event, stop: threading.Event, told: list[float]) -> threading.Thread:
    """Sets `stop` once the work has begun, and notes when."""

    def wait_and_stop() -> None:
        begun.wait(10)
        told.append(time.monotonic())
        stop.set()

    thread = threading.Thread(target=wait_and_stop)
    thread.start()
    return thread


@pytest.mark.parametrize(("data", "hole", "limit"), [(64 * MIB, 0, MIB), (MIB, 1 << 40, 0)], ids=["limit", "hole"])
def test_a_copy_ends_within_a_second_of_being_told_and_leaves_nothing(
    data: int, hole: int, limit: int, source: Folder, beside: Folder
) -> None:
    (source.path / "a").write_bytes(os.urandom(data))
    os.truncate(source.path / "a", data + hole)
    begun, stop, told = threading.Event(), threading.Event(), list[float]()
    thread = stopped_after(begun, stop, told)
    with pytest.raises(Stopped):
        copy_file((source, "a"), (beside, "b"), Access(), lambda _done: begun.set(), Pace(limit, stop))
    ended = time.monotonic()
    thread.join()
    assert ended - told[0] < 1
    assert beside.names() == []


@pytest.mark.parametrize(("data", "hole", "limit"), [(64 * MIB, 0, MIB), (MIB, 1 << 40, 0)], ids=["limit", "hole"])
def test_a_digest_ends_within_a_second_of_being_told(data: int, hole: int, limit: int, source: Folder) -> None:
    (source.path / "a").write_bytes(os.urandom(data))
    os.truncate(source.path / "a", data + hole)
    begun, stop, told = threading.Event(), threading.Event(), list[float]()
    thread = stopped_after(begun, stop, told)
    with pytest.raises(Stopped):
        digest_file(source, "a", lambda _done: begun.set(), pace=Pace(limit, stop))
    ended = time.monotonic()
    thread.join()
    assert ended - told[0] < 1


def test_what_is_stopped_beforehand_reads_nothing(source: Folder, beside: Folder) -> None:
    stop, done = threading.Event(), list[int]()
    stop.set()
    (source.path / "a").write_bytes(b"content")
    with pytest.raises(Stopped):
        copy_file((source, "a"), (beside, "b"), Access(), done.append, Pace(stop=stop))
    with pytest.raises(Stopped):
        digest_file(source, "a", done.append, pace=Pace(stop=stop))
    assert done == []
    assert beside.names() == []


def test_a_reader_that_is_given_up_comes_back_without_a_complaint(source: Folder) -> None:
    given_up = threading.Event()
    given_up.set()
    (source.path / "a").write_bytes(b"content")
    os.truncate(source.path / "a", 1 << 40)
    digest_file(source, "a", given_up=given_up)


def test_the_limit_is_kept_and_holes_are_not_counted(source: Folder, beside: Folder) -> None:
    amount, limit = 6 * MIB, 3 * MIB
    (source.path / "a").write_bytes(os.urandom(amount))
    os.truncate(source.path / "a", 64 * MIB)
    begun = time.monotonic()
    copy_file((source, "a"), (beside, "b"), Access(), pace=Pace(limit))
    rate = amount / (time.monotonic() - begun)
    # With the holes counted it would be a tenth; a busy machine may be slower than the limit.
    assert 0.3 * limit < rate < 1.2 * limit


def test_time_lost_is_not_made_up_by_a_burst(source: Folder, beside: Folder) -> None:
    (source.path / "a").write_bytes(os.urandom(4 * MIB))
    moments: list[float] = []

    def lose_time_once(_done: int) -> None:
        if not moments:
            time.sleep(1)
        moments.append(time.monotonic())

    copy_file((source, "a"), (beside, "b"), Access(), lose_time_once, Pace(4 * MIB))
    assert moments[-1] - moments[0] > 0.7


def test_a_copy_lets_others_go_first_at_the_disk_and_then_its_thread_does_no_more(
    source: Folder, beside: Folder
) -> None:
    before = disk_class()
    require([] if before is not None else ["this machine tells no I/O class"])
    seen: list[int | None] = []
    (source.path / "a").write_bytes(b"content")
    copy_file((source, "a"), (beside, "b"), Access(), lambda _done: seen.append(disk_class()))
    digest_file(source, "a", lambda _done: seen.append(disk_class()))
    copy_file((source, "a"), (beside, "c"), Access(), lambda _done: seen.append(disk_class()), AT_ONCE)
    assert seen == [IDLE << 13, IDLE << 13, before]
    assert disk_class() == before


def cached(path: Path) -> int:
    """Bytes of a file that could be read without the disk, by mincore(2); asking brings none of them back."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as mapped:
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        at = ctypes.c_char.from_buffer(mapped)
        answer = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(at)), ctypes.c_size_t(size), pages)
        del at  # the mapping cannot be closed before
    assert answer == 0
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def test_on_a_machine_whose_calls_have_no_known_numbers_a_copy_goes_on_without(
    source: Folder, beside: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source.path / "a").write_bytes(b"content")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "n1", "6.1", "1", "mips64")))
    assert disk_class() is None
    copy_file((source, "a"), (beside, "b"), Access())
    assert (beside.path / "b").read_bytes() == b"content"


def test_nothing_of_a_copy_stays_in_the_page_cache(source: Folder, target: Folder) -> None:
    path = source.path / "a"
    path.write_bytes(os.urandom(24 * MIB))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    assert cached(path) == 24 * MIB
    copy_file((source, "a"), (target, "b"), Access())
    assert cached(target.path / "b") < MIB


def test_a_large_file_is_dropped_from_memory_while_it_is_copied(source: Folder, beside: Folder) -> None:
    path = source.path / "a"
    path.write_bytes(os.urandom(24 * MIB))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    done: list[int] = []
    at_the_end: list[int] = []

    def look_at_the_end(moved: int) -> None:
        done.append(moved)
        if sum(done) == 24 * MIB:
            at_the_end.extend([cached(path), cached(beside.path / "b.partial")])

    copy_file((source, "a"), (beside, "b"), Access(), look_at_the_end)
    assert max(at_the_end) <= 16 * MIB, f"in memory of 24 MiB: {at_the_end} bytes"


def test_what_the_disk_says_on_the_way_is_heard() -> None:
    trail = Trail(-1, -1)
    trail.reached(MIB)
    with pytest.raises(OSError, match="Bad file descriptor"):
        trail.reached(8 * MIB)
