"""The copy engine: sparse, digested on the way, fsynced, and gone from the page cache afterwards.

Called by the operations for what can be neither renamed nor cloned: memory states from the RAM disk, sets to another
filesystem.
"""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from blake3 import blake3

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, Folder
from nodeagent.host.priority import idle_disk_access
from nodeagent.host.trail import Trail
from vmkeep.contract.errors import TryLater

_BLOCK = 1 << 20
_SMALLEST_BLOCK = 64 << 10
_BLOCKS_A_SECOND = 16  # at the least, where there is a limit: no long silence after a long burst
_ZEROS = memoryview(bytes(_BLOCK))
Progress = Callable[[int], None]


class Stopped(TryLater):
    """A copy was told to stop; what it had made is gone. It can be begun anew."""


@dataclass(frozen=True)
class Pace:
    """How fast at most, in bytes of data a second (0: no limit), until when, and whether others go first at the disk.

    Once `stop` is set, a copy or digest raises `Stopped` within a second. Where a machine is down until the copy is
    done, `idle` is to be False.
    """

    bytes_per_second: int = 0
    stop: threading.Event | None = None
    idle: bool = True


@dataclass(frozen=True)
class Content:
    """A file's length in bytes and the digest of its whole content, holes read as zeros."""

    size: int
    digest: str


_AFTER_OTHERS = Pace()
# A machine stands still until it is done: nobody else goes first.
AT_ONCE = Pace(idle=False)


def no_progress(_done: int) -> None:
    """For callers that show nothing."""


def copy_file(
    source: tuple[Folder, str],
    target: tuple[Folder, str],
    access: Access,
    progress: Progress = no_progress,
    pace: Pace = _AFTER_OTHERS,
) -> Content:
    """Copy one file under a partial name, make it durable, then give it its name. Never over an existing file.

    The digest is of the very bytes that were written; the source must not change its length meanwhile.
    """
    (from_folder, from_name), (to_folder, to_name) = source, target
    with _first_come(pace), from_folder.opened(from_name) as reading, to_folder.making(to_name) as writing:
        access.apply(writing)
        content = _copy(reading, writing, progress, _Brake(pace))
        os.posix_fadvise(reading, 0, 0, os.POSIX_FADV_DONTNEED)
        return content


def digest_file(
    folder: Folder,
    name: str,
    progress: Progress = no_progress,
    given_up: threading.Event | None = None,
    pace: Pace = _AFTER_OTHERS,
) -> Content:
    """Read a file once for its digest.

    `given_up` is for who reads along with somebody else, a block job: what comes back is of no worth once it is set,
    and the pages are left to the other reader.
    """
    with _first_come(pace), folder.opened(name) as reading:
        return _digest(reading, progress, _Brake(pace), given_up)


def _first_come(pace: Pace) -> contextlib.AbstractContextManager[None]:
    return idle_disk_access() if pace.idle else contextlib.nullcontext()


class _Brake:
    """Holds a copy to its pace: no credit is kept from slow times, so there is no burst after them."""

    def __init__(self, pace: Pace) -> None:
        self._rate = pace.bytes_per_second
        self._stop = pace.stop or threading.Event()
        self._due = time.monotonic()
        self.block = min(_BLOCK, max(_SMALLEST_BLOCK, self._rate // _BLOCKS_A_SECOND)) if self._rate else _BLOCK

    def look(self) -> None:
        """Stopped where somebody asked for it."""
        if self._stop.is_set():
            raise Stopped("copying was stopped; what was made is gone, and it begins anew when the work is taken up")

    def moved(self, amount: int) -> None:
        """Wait until so many more bytes may have been moved; Stopped as soon as somebody asks for it."""
        self.look()
        if not self._rate:
            return
        now = time.monotonic()
        self._due = max(self._due, now - 1 / _BLOCKS_A_SECOND) + amount / self._rate
        if self._due > now and self._stop.wait(self._due - now):
            self.look()


def _copy(reading: int, writing: int, progress: Progress, brake: _Brake) -> Content:
    brake.look()
    size = os.fstat(reading).st_size
    os.ftruncate(writing, size)
    trail = Trail(reading, writing)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest") as thread:
        digest = _DigestBeside(thread)
        for at, length, is_data in _blocks(reading, size, brake.block):
            if is_data:
                piece = digest.add(_read(reading, digest.buffer()[:length], at))
                _write(writing, piece, at)
                trail.reached(at + length)
                brake.moved(length)
            else:
                digest.add_zeros(length)
                brake.look()
            progress(length)
        return Content(_unchanged(reading, size), digest.result())


class _DigestBeside:
    """A digest taken in another thread, from the buffers that the copy is written from."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._digest = blake3()
        self._buffers = [memoryview(bytearray(_BLOCK)) for _ in range(3)]
        self._reading: list[Future[object]] = []

    def buffer(self) -> memoryview:
        """One that is read no more."""
        self._wait_for_one()
        self._buffers.append(self._buffers.pop(0))
        return self._buffers[-1]

    def add(self, piece: memoryview) -> memoryview:
        """Data, in the buffer given last."""
        self._reading.append(self._thread.submit(self._digest.update, piece))
        return piece

    def add_zeros(self, length: int) -> None:
        """So much of a hole."""
        self._wait_for_one()
        self.add(_ZEROS[:length])

    def result(self) -> str:
        """Of everything added."""
        for block in self._reading:
            block.result()
        return _named(self._digest.hexdigest())

    def _wait_for_one(self) -> None:
        if len(self._reading) == len(self._buffers):
            self._reading.pop(0).result()


def _read(reading: int, buffer: memoryview, at: int) -> memoryview:
    got = 0
    while got < len(buffer):
        count = os.preadv(reading, [buffer[got:]], at + got)
        if not count:
            raise HostFailure("the file became shorter while it was being copied")
        got += count
    return buffer


def _write(writing: int, piece: memoryview, at: int) -> None:
    done = 0
    while done < len(piece):
        done += os.pwrite(writing, piece[done:], at + done)


def _digest(reading: int, progress: Progress, brake: _Brake, given_up: threading.Event | None) -> Content:
    brake.look()
    size = os.fstat(reading).st_size
    digest = blake3()
    buffer = memoryview(bytearray(_BLOCK))
    for at, length, is_data in _blocks(reading, size, brake.block):
        if given_up is not None and given_up.is_set():
            break
        if is_data:
            digest.update(_read(reading, buffer[:length], at))
            brake.moved(length)
        else:
            digest.update(_ZEROS[:length])
            brake.look()
        progress(length)
    if given_up is None:
        os.posix_fadvise(reading, 0, 0, os.POSIX_FADV_DONTNEED)
    return Content(_unchanged(reading, size), _named(digest.hexdigest()))


def _unchanged(reading: int, size: int) -> int:
    if os.fstat(reading).st_size != size:
        raise HostFailure("the file changed its length while it was being read")
    return size


def _named(digest: str) -> str:
    return f"blake3:{digest}"


def _blocks(descriptor: int, size: int, most: int) -> Iterator[tuple[int, int, bool]]:
    for start, end, is_data in extents(descriptor, size):
        for at in range(start, end, most):
            yield at, min(most, end - at), is_data


def extents(descriptor: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """(start, end, is data) from the beginning to the end of a file, in order, without gaps."""
    at = 0
    while at < size:
        data = _seek(descriptor, at, os.SEEK_DATA, size)
        if data > at:
            yield at, data, False
        if data >= size:
            return
        hole = _seek(descriptor, data, os.SEEK_HOLE, size)
        yield data, hole, True
        at = hole


def _seek(descriptor: int, at: int, whence: int, size: int) -> int:
    try:
        return min(os.lseek(descriptor, at, whence), size)
    except OSError as why:
        if why.errno == errno.ENXIO:  # no data up to the end
            return size
        raise
