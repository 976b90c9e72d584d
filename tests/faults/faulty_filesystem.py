"""A filesystem that shows a folder at another place, and fails there as a test tells it to.

Run as `python -m tests.faults.faulty_filesystem SOURCE MOUNTPOINT ORDERS`; ORDERS is a file of lines `operation errno`
such as `fsync EIO`, read at each operation. To let it hang, stop the process; to end it, unmount.
"""

import contextlib
import errno
import functools
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfusepy import FUSE, FuseOSError, Operations

from lab import mounts
from lab.processes import Process, identify, stop
from lab.waiting import until

_DEVICE = Path("/dev/fuse")


@dataclass(frozen=True)
class Faulty:
    """One that is mounted: `folder` is where the faults are, `orders` the file they are told in."""

    folder: Path
    orders: Path
    process: Process

    def fail(self, **faults: str) -> None:
        """Let operations fail from now on: `fsync="EIO"`; without any, all is well again."""
        making = self.orders.with_suffix(".new")
        making.write_text("".join(f"{operation} {name}\n" for operation, name in faults.items()))
        making.replace(self.orders)


@contextmanager
def faulty_filesystem(folder: Path) -> Iterator[Faulty]:
    """A filesystem in a new folder; gone again afterwards, whatever happened."""
    source, mountpoint, orders = folder / "source", folder / "shown", folder / "orders"
    for each in (source, mountpoint):
        each.mkdir(parents=True)
    orders.touch()
    _have_device()
    child = subprocess.Popen([sys.executable, "-m", "tests.faults.faulty_filesystem", source, mountpoint, orders])
    process = identify("faulty filesystem", child.pid)
    assert process is not None
    try:
        until(f"{mountpoint} to be mounted", lambda: mountpoint in mounts.below(folder), 20)
        yield Faulty(mountpoint, orders, process)
    finally:
        process.kill(signal.SIGCONT)  # a stopped one cannot be unmounted
        mounts.unmount_below(folder)
        stop([process])
        child.wait(10)


def _have_device() -> None:
    """Containers may have a kernel that knows FUSE, and no file for it."""
    if not _DEVICE.exists():
        os.mknod(_DEVICE, stat.S_IFCHR | 0o600, os.makedev(10, 229))


class _Shown(Operations):  # type: ignore[misc] # the library has types of its own kind
    """Every operation done on the source, unless told otherwise."""

    use_ns = True

    def __init__(self, source: str, orders: str) -> None:
        self._source = source
        self._orders = orders

    def as_told(self, operation: str) -> None:
        """Fail, where a test wants it."""
        for line in Path(self._orders).read_text().splitlines():
            told, name = line.split()
            if told == operation:
                raise FuseOSError(getattr(errno, name))

    def _at(self, path: str) -> str:
        return self._source + path

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        told = os.fstat(fh) if fh else os.lstat(self._at(path))
        names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_blocks", "st_ino", "st_dev", "st_rdev")
        times = {f"st_{each}time": getattr(told, f"st_{each}time_ns") for each in "amc"}
        return {name: getattr(told, name) for name in names} | times

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._at(path))]

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def statfs(self, path: str) -> dict[str, Any]:
        told = os.statvfs(self._at(path))
        names = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "flag", "namemax")
        return {f"f_{name}": getattr(told, f"f_{name}") for name in names}

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def symlink(self, target: str, source: str) -> None:
        os.symlink(source, self._at(target))

    def link(self, target: str, source: str) -> None:
        os.link(self._at(source), self._at(target))

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        os.rename(self._at(old), self._at(new))

    def chmod(self, path: str, mode: int, fh: int | None = None) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: str, uid: int, gid: int, fh: int | None = None) -> None:
        os.chown(self._at(path), uid, gid, follow_symlinks=False)

    def utimens(self, path: str, times: tuple[int, int] | None = None, fh: int | None = None) -> None:
        os.utime(self._at(path), ns=times or (time.time_ns(),) * 2, follow_symlinks=False)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        os.truncate(fh or self._at(path), length)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._at(path), flags & ~(os.O_CREAT | os.O_EXCL | os.O_DIRECT))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        os.fsync(fh)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        descriptor = os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def release(self, path: str, fh: int) -> None:
        os.close(fh)


def _failing_as_told(operation: str, work: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(work)
    def told(self: _Shown, *arguments: Any) -> Any:
        self.as_told(operation)
        return work(self, *arguments)

    return told


for _name, _work in list(vars(_Shown).items()):
    if callable(getattr(Operations, _name, None)) and not _name.startswith("_"):
        setattr(_Shown, _name, _failing_as_told(_name, _work))


if __name__ == "__main__":
    with contextlib.suppress(RuntimeError):  # somebody unmounted it: how it always ends
        FUSE(
            _Shown(sys.argv[1], sys.argv[3]),
            sys.argv[2],
            foreground=True,
            nothreads=False,
            max_threads=4,
            allow_other=True,
        )
