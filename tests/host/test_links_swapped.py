"""Somebody on the same storage swaps directories and files for links, pipes and devices, while we work there.

A second process swaps for as long as a verb is at work. The kernel says whether anything outside the roots was touched.
"""

import contextlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

from nodeagent.host.copying import copy_file, digest_file
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, make_folder, names_in, open_folder, remove_empty, remove_file
from nodeagent.host.images import Images
from nodeagent.operations.removing import remove_iteration
from tests.conftest import require
from tests.watched_files import watched

ROUNDS, SECONDS = 60, 20  # at the least, and at the most
OLD, NEW = "20260101T000000Z", "20260102T000000Z"

# Exchanges two names in one step (renameat2, RENAME_EXCHANGE), again and again, until its end of the pipe closes.
SWAPPER = """
import ctypes, os, select, sys
libc = ctypes.CDLL(None, use_errno=True)
pairs = [tuple(map(os.fsencode, pair.split("|"))) for pair in sys.argv[1:]]
print("swapping", flush=True)
while not select.select([0], [], [], 0)[0]:
    for one, other in pairs:
        libc.renameat2(-100, one, -100, other, 2)
"""


@dataclass(frozen=True)
class Storage:
    """A root with a machine's directory in it, and what lies outside, made to look the same."""

    root: Path
    outside: Path

    @property
    def machine(self) -> PurePosixPath:
        return PurePosixPath(self.root / "vm-persistent" / "p" / "vm")

    @property
    def roots(self) -> list[str]:
        return [str(self.root)]

    def fill(self, top: Path) -> None:
        """Sets as they lie in a backup directory, a file to be copied, and room for a new one."""
        for timestamp in (OLD, NEW):
            folder = top / "vm" / timestamp
            folder.mkdir(parents=True, exist_ok=True)
            for name in (f"manifest.json.{timestamp}", "disk.qcow2", "victim"):
                (folder / name).write_bytes(b"x" * 5000)
        (top / "vm" / "empty").mkdir(exist_ok=True)

    def directories_outside(self) -> list[Path]:
        """All there are, outside."""
        return [self.outside, *(path for path in self.outside.rglob("*") if path.is_dir())]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    found = Storage(tmp_path / "root", tmp_path / "outside")
    found.fill(found.root / "vm-persistent" / "p")
    found.fill(found.outside)
    return found


@contextlib.contextmanager
def swapping(*pairs: tuple[Path | PurePosixPath, Path]) -> Iterator[None]:
    """Exchange each two names for as long as the body runs."""
    argv = [sys.executable, "-c", SWAPPER, *(f"{one}|{other}" for one, other in pairs)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "swapping\n"
        try:
            yield
        finally:
            process.stdin.close()
            assert process.wait(10) == 0, "it swapped to the end"


Verb = Callable[[Storage], object]


def _write(storage: Storage) -> None:
    with open_folder(storage.machine / OLD, storage.roots) as folder:
        folder.write("victim", b"new", Access(mode=0o640))
        folder.set_access("victim", Access(uid=os.geteuid(), mode=0o600))


def _copy(storage: Storage) -> None:
    with (
        open_folder(storage.machine / OLD, storage.roots) as source,
        make_folder(storage.machine / "made", storage.roots, Access(mode=0o750)) as target,
    ):
        target.remove_made("copy")
        copy_file((source, "victim"), (target, "copy"), Access(mode=0o600))
        target.rename_over("copy", target, "renamed")


def _link(storage: Storage) -> None:
    with open_folder(storage.machine / OLD, storage.roots) as source:
        source.link_to("victim", source, "second")
        source.remove("second")


def _read(storage: Storage) -> None:
    with open_folder(storage.machine / OLD, storage.roots) as folder:
        digest_file(folder, "victim")
        assert b"of the host" not in folder.read("victim")
        with contextlib.suppress(HostFailure):
            Images().header(folder, "disk.qcow2")
    names_in(storage.machine / OLD, storage.roots)


def _remove(storage: Storage) -> None:
    remove_file(storage.machine / OLD / "victim", storage.roots)
    remove_empty(storage.machine / "empty", storage.machine, storage.roots)


def _delete(storage: Storage) -> None:
    remove_iteration(storage.machine, storage.roots, OLD)


VERBS: dict[str, Verb] = {
    "write": _write,
    "copy": _copy,
    "link": _link,
    "read": _read,
    "remove": _remove,
    "delete": _delete,
}


@pytest.mark.parametrize("level", ["pool", "machine", "set"])
@pytest.mark.parametrize("verb", VERBS)
def test_nothing_outside_is_touched_while_a_directory_becomes_a_link(verb: str, level: str, storage: Storage) -> None:
    machine = Path(storage.machine)
    place = {"pool": machine.parent, "machine": machine, "set": machine / OLD}[level]
    inside = {"pool": storage.outside, "machine": storage.outside / "vm", "set": storage.outside / "vm" / OLD}[level]
    link = storage.root / "link"
    link.symlink_to(inside)
    content = {path: path.read_bytes() for path in storage.outside.rglob("*") if path.is_file()}
    with watched(*storage.directories_outside()) as seen, swapping((place, link)):
        again_and_again(lambda: VERBS[verb](storage), lambda: _fill_again(storage, place))
        assert seen.events() == set()
    assert {path: path.read_bytes() for path in content} == content


def again_and_again(attempt: Callable[[], object], lay: Callable[[], None]) -> None:
    """Until a verb has come through and been refused several times each: else the test would show nothing."""
    done = refused = 0
    deadline = time.monotonic() + SECONDS
    while done + refused < ROUNDS or min(done, refused) < 3:
        assert time.monotonic() < deadline, f"it came through {done} times and was refused {refused} times"
        try:
            attempt()
            done += 1
        except (HostFailure, OSError):
            refused += 1
        lay()


KINDS: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda path, outside: path.symlink_to(outside),
    "pipe": lambda path, _: os.mkfifo(path),
    "device": lambda path, _: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 9)),  # endless, were it read
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", ["write", "copy", "link", "read", "remove"])
def test_nothing_outside_is_touched_while_a_file_becomes_something_else(verb: str, kind: str, storage: Storage) -> None:
    require(["a device needs root: run the tests with sudo"] if kind == "device" and os.geteuid() else [])
    place, other = Path(storage.machine / OLD / "victim"), storage.root / "other"
    target = storage.outside / "vm" / OLD / "victim"
    target.write_bytes(b"of the host")
    before = target.stat()

    def lay() -> None:
        """Both are there, and one is odd: a verb may have removed or replaced either."""
        for path in (place, other):
            if not os.path.lexists(path):
                path.write_bytes(b"x" * 5000)
        # They may be swapped while they are looked at; what comes of that is seen in the next round.
        plain = [path.is_file() and not path.is_symlink() for path in (place, other)]
        if all(plain) or not any(plain):
            other.unlink()
            other.write_bytes(b"x" * 5000) if not any(plain) else KINDS[kind](other, target)

    lay()
    with watched(*storage.directories_outside()) as seen, swapping((place, other)):
        again_and_again(lambda: _unless_odd(verb, storage, place), lay)
        assert seen.events() == set()
    assert target.stat().st_ctime_ns == before.st_ctime_ns, "owner, mode, content and names are what they were"


def _unless_odd(verb: str, storage: Storage, place: Path) -> None:
    """Names are removed and linked whatever bears them, and that is right; so that it counts as refused, look first."""
    if verb in ("remove", "link") and not stat.S_ISREG(place.lstat().st_mode):
        VERBS[verb](storage)
        raise HostFailure("it was not what was meant")
    VERBS[verb](storage)


def _fill_again(storage: Storage, place: Path) -> None:
    """What a verb removed is there again, wherever the swapped directory is at the moment, never through the link."""
    if not os.path.lexists(place):
        place.mkdir()  # nobody can exchange what is not there
    for top in (place, storage.root / "link"):
        with contextlib.suppress(OSError):
            descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                _fill_below(descriptor, place.name)
            finally:
                os.close(descriptor)


def _fill_below(descriptor: int, name: str) -> None:
    """By descriptor alone: whoever swaps cannot lead us elsewhere either."""
    if name == "p":
        _within(descriptor, "vm", lambda machine: _fill_below(machine, "vm"))
    elif name == "vm":
        for timestamp in (OLD, NEW):
            _within(descriptor, timestamp, lambda folder, timestamp=timestamp: _fill_set(folder, timestamp))
        _within(descriptor, "empty", lambda _folder: None)
    else:
        _fill_set(descriptor, name)


def _within(descriptor: int, name: str, fill: Callable[[int], None]) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=descriptor)
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
    try:
        fill(inner)
    finally:
        os.close(inner)


def _fill_set(descriptor: int, timestamp: str) -> None:
    for name in (f"manifest.json.{timestamp}", "disk.qcow2", "victim"):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=descriptor)
        os.write(file, b"x" * 5000)
        os.close(file)
