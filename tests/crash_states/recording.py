"""Sits under the real code and notes what it does to files, in order, into a model of the disk; makes states real.

Names and fsyncs are noted as they are asked of the system; what was written, and what other programs made, is found by
looking before and after each. Every file keeps its inode for good, in a pool: a state is made with the very inodes that
it had, so that second names and numbers hold.
"""

import os
import shutil
import stat
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tests.crash_states.disk_model import Directory, Disk, File, State

_REAL = {name: getattr(os, name) for name in ("link", "rename", "unlink", "mkdir", "rmdir", "fsync", "fdatasync")}
_FIRST_TIME = 1_600_000_000  # of files; a later version is a second younger, whatever the clock's grain


@dataclass(frozen=True)
class Loss:
    """Power is lost after an operation (`number`, `after`), and this is what is left. `witness` knows what was true."""

    number: int
    after: str
    state: State
    witness: Hashable


class Recorder:
    """One run over directories (`roots`, each with a place beside it for the pool). Nothing is really fsynced."""

    def __init__(self, roots: Sequence[Path], name: str, witness: Callable[[], Hashable] = lambda: None) -> None:
        self.roots = [PurePosixPath(root) for root in roots]
        self.losses: dict[tuple[State, Hashable], Loss] = {}
        self.operations: list[str] = []
        self._disk = Disk(self.roots)
        self._pools = {os.stat(root).st_dev: root.parent / f"pool-{root.name}-{name}" for root in roots}
        self._witness = witness
        self._files: dict[tuple[int, int], File] = {}
        self._places: list[Path] = []
        self._times: dict[tuple[int, bytes], int] = {}
        for pool in self._pools.values():
            shutil.rmtree(pool, ignore_errors=True)
            pool.mkdir()
        self._is_running = False
        self._look()
        self._disk.settle()
        self._is_running = True

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Everything that happens in here is noted."""
        doings = {"link": self._link, "rename": self._rename, "fsync": self._sync, "fdatasync": self._sync}
        doings |= {"unlink": self._unlink, "rmdir": self._unlink, "mkdir": self._mkdir}
        try:
            for name, noting in doings.items():
                setattr(os, name, self._noted(name, noting))
            yield
        finally:
            for name, real in _REAL.items():
                setattr(os, name, real)
            self._look()

    def possible_now(self) -> list[State]:
        """What may be left if power is lost after everything that was noted."""
        return list(self._disk.states())

    def make_real(self, state: State) -> None:
        """Directories and files as the state has them, and nothing else."""
        for root in self.roots:
            _empty(root)
        for directory in state.directories:
            Path(directory).mkdir(exist_ok=True)
        for number, content in state.contents:
            _fill(self._places[number], content)
            at = _FIRST_TIME + self._times.get((number, content), 0)
            os.utime(self._places[number], (at, at))
        for path, number in state.files:
            _REAL["link"](self._places[number], path)

    # what is asked of the system

    def _noted(self, name: str, noting: Callable[..., str]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._look()
            result = None if name in ("fsync", "fdatasync") else _REAL[name](*args, **kwargs)
            if told := noting(*args, **kwargs):
                self._cut(f"{name} {told}")
            return result

        return call

    def _link(
        self, old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None, **_: Any
    ) -> str:
        source, path = _path(old, src_dir_fd), _path(new, dst_dir_fd)
        if not self._is_ours(path):
            return ""
        node = self._disk.at(source)
        assert node is not None, source
        self._disk.make(path, node)
        return f"{source} {path}"

    def _rename(self, old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> str:
        source, path = _path(old, src_dir_fd), _path(new, dst_dir_fd)
        if not self._is_ours(path):
            return ""
        self._disk.rename(source, path)
        return f"{source} {path}"

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> str:
        found = _path(path, dir_fd)
        if not self._is_ours(found):
            return ""
        self._disk.remove(found)
        return str(found)

    def _mkdir(self, path: Any, _mode: int = 0o777, *, dir_fd: int | None = None) -> str:
        found = _path(path, dir_fd)
        if not self._is_ours(found):
            return ""
        self._disk.make(found, Directory())
        return str(found)

    def _sync(self, descriptor: int) -> str:
        found, path = os.fstat(descriptor), PurePosixPath(os.readlink(f"/proc/self/fd/{descriptor}"))
        if stat.S_ISDIR(found.st_mode):
            if not self._is_ours(path) or self._disk.at(path) is None:
                return ""
            self._disk.sync_directory(path)
        else:
            file = self._files.get((found.st_dev, found.st_ino))
            if file is None:
                return ""
            file.sync()
        return str(path)

    def _is_ours(self, path: PurePosixPath) -> bool:
        return any(path.is_relative_to(root) for root in self.roots)

    # what is found by looking

    def _look(self) -> None:
        for root in self.roots:
            for directory, folders, names in os.walk(root):
                self._compare(PurePosixPath(directory), sorted(folders), sorted(names))
        for file, place in zip(self._known(), self._places, strict=True):
            content = place.read_bytes()
            if content != file.now:
                file.write(content)
                self._times[file.number, content] = len(self.operations) + 1
                self._cut(f"write {place.name} {content[:40]!r}")

    def _known(self) -> list[File]:
        return sorted(self._files.values(), key=lambda file: file.number)

    def _compare(self, directory: PurePosixPath, folders: list[str], names: list[str]) -> None:
        known = self._disk.directory(directory).names
        for gone in [name for name in known if name not in folders and name not in names]:
            self._disk.remove(directory / gone)
            self._cut(f"gone {directory / gone}")
        for name in folders:
            if name not in known:
                self._disk.make(directory / name, Directory())
                self._cut(f"made {directory / name}")
        for name in names:
            file = self._file_at(directory / name)
            if known.get(name) is not file:
                self._disk.make(directory / name, file)
                self._cut(f"made {directory / name}")

    def _file_at(self, path: PurePosixPath) -> File:
        found = os.stat(path, follow_symlinks=False)
        key = (found.st_dev, found.st_ino)
        if key not in self._files:
            self._files[key] = File(len(self._files))
            self._places.append(self._pools[found.st_dev] / str(self._files[key].number))
            _REAL["link"](path, self._places[-1])
        return self._files[key]

    def _cut(self, after: str) -> None:
        if not self._is_running:
            return
        self.operations.append(after)
        witness = self._witness()
        for state in self._disk.states():
            loss = Loss(len(self.operations), after, state, witness)
            self.losses.setdefault((state, witness), loss)


def _path(path: Any, directory: int | None) -> PurePosixPath:
    if directory is None:
        return PurePosixPath(os.fspath(path))
    return PurePosixPath(os.readlink(f"/proc/self/fd/{directory}")) / os.fspath(path)


def _fill(path: Path, content: bytes) -> None:
    """Never emptied first: ext4 would write it to the disk at once."""
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))
    os.close(descriptor)


def _empty(directory: PurePosixPath) -> None:
    for name in os.listdir(directory):
        path = Path(directory / name)
        shutil.rmtree(path) if path.is_dir() else _REAL["unlink"](path)


def tree(roots: Sequence[Path]) -> dict[str, bytes | None]:
    """Everything below some directories: files with what they hold, directories with None."""
    found = sorted(path for root in roots for path in root.rglob("*"))
    return {str(path): None if path.is_dir() else path.read_bytes() for path in found}
