"""The copy engine: sparse, digested on the way, fsynced, and gone from the page cache afterwards.

Called by the operations for what cannot be renamed: memory states from the RAM disk, sets to another filesystem.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from blake3 import blake3

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, Folder

_COPY_BLOCK = 8 << 20
_DIGEST_BLOCK = 1 << 20
_ZEROS = memoryview(bytes(_DIGEST_BLOCK))
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Content:
    """A file's length in bytes and the digest of its whole content, holes read as zeros."""

    size: int
    digest: str


def no_progress(_done: int) -> None:
    """For callers that show nothing."""


def copy_file(
    source: tuple[Folder, str], target: tuple[Folder, str], access: Access, progress: Progress = no_progress
) -> Content:
    """Copy one file under a partial name, make it durable, then give it its name. Never over an existing file.

    The kernel copies while a second thread takes the digest of the same pages; the source must not change meanwhile.
    """
    (from_folder, from_name), (to_folder, to_name) = source, target
    making = f"{to_name}.partial"
    to_folder.remove(making)
    try:
        with (
            from_folder.opened(from_name) as reading,
            to_folder.opened(making, os.O_RDWR | os.O_CREAT | os.O_EXCL) as writing,
        ):
            access.apply(writing)
            content = _copy_and_digest(reading, writing, progress)
            os.fsync(writing)
            for descriptor in (reading, writing):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        to_folder.give_name(making, to_name)
    finally:
        to_folder.remove(making)  # also where the disk is full: it keeps nothing that nobody needs
    to_folder.sync()
    return content


def digest_file(
    folder: Folder, name: str, progress: Progress = no_progress, given_up: threading.Event | None = None
) -> Content:
    """Read a file once for its digest; of no worth where it is `given_up` on the way."""
    with folder.opened(name) as reading:
        return _digest(reading, progress, given_up or threading.Event())


def _copy_and_digest(reading: int, writing: int, progress: Progress) -> Content:
    given_up = threading.Event()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest") as reader:
        digesting = reader.submit(_digest, reading, no_progress, given_up)
        try:
            _copy(reading, writing, progress)
        except BaseException:
            given_up.set()
            raise
        return digesting.result()


def _copy(reading: int, writing: int, progress: Progress) -> None:
    size = os.fstat(reading).st_size
    os.ftruncate(writing, size)
    for start, end, is_data in extents(reading, size):
        if is_data:
            _copy_data(reading, writing, (start, end), progress)
        else:
            progress(end - start)


def _copy_data(reading: int, writing: int, extent: tuple[int, int], progress: Progress) -> None:
    at, end = extent
    os.lseek(writing, at, os.SEEK_SET)
    while at < end:
        copied = os.sendfile(writing, reading, at, min(_COPY_BLOCK, end - at))
        if not copied:
            raise HostFailure("the file became shorter while it was being copied")
        at += copied
        progress(copied)


def _digest(reading: int, progress: Progress, given_up: threading.Event) -> Content:
    size = os.fstat(reading).st_size
    digest = blake3()
    buffer = memoryview(bytearray(_DIGEST_BLOCK))
    for start, end, is_data in extents(reading, size):
        at = start
        while at < end and not given_up.is_set():
            length = min(_DIGEST_BLOCK, end - at)
            got = os.preadv(reading, [buffer[:length]], at) if is_data else length
            if not got:
                raise HostFailure("the file became shorter while it was being read")
            digest.update(buffer[:got] if is_data else _ZEROS[:got])
            at += got
            progress(got)
    if os.fstat(reading).st_size != size:
        raise HostFailure("the file changed its length while it was being read")
    return Content(size, f"blake3:{digest.hexdigest()}")


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
