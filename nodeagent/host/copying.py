"""The copy engine: sparse, digested on the way, fsynced, and gone from the page cache afterwards.

Called by the operations for what cannot be renamed: memory states from the RAM disk, sets to another filesystem.
"""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from blake3 import blake3

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, Folder

BLOCK = 1 << 20
_ZEROS = memoryview(bytes(BLOCK))
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
    """Copy one file under a partial name, make it durable, then give it its name. Never over an existing file."""
    (from_folder, from_name), (to_folder, to_name) = source, target
    making = f"{to_name}.partial"
    to_folder.remove(making)
    try:
        with (
            from_folder.opened(from_name) as reading,
            to_folder.opened(making, os.O_RDWR | os.O_CREAT | os.O_EXCL) as writing,
        ):
            access.apply(writing)
            content = _stream(reading, writing, progress)
            os.fsync(writing)
            for descriptor in (reading, writing):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except BaseException:
        to_folder.remove(making)  # a full disk keeps nothing that nobody needs
        raise
    to_folder.link_to(making, to_folder, to_name)
    to_folder.remove(making)
    to_folder.sync()
    return content


def digest_file(folder: Folder, name: str, progress: Progress = no_progress) -> Content:
    """Read a file once for its digest."""
    with folder.opened(name) as reading:
        return _stream(reading, None, progress)


def _stream(reading: int, writing: int | None, progress: Progress) -> Content:
    size = os.fstat(reading).st_size
    digest = blake3()
    if writing is not None:
        os.ftruncate(writing, size)
    buffer = memoryview(bytearray(BLOCK))
    for start, end, is_data in extents(reading, size):
        if is_data:
            _stream_data(reading, writing, (start, end), digest, buffer, progress)
        else:
            _digest_zeros(digest, end - start)
            progress(end - start)
    if os.fstat(reading).st_size != size:
        raise HostFailure("the file changed its length while it was being read")
    return Content(size, f"blake3:{digest.hexdigest()}")


def _stream_data(
    reading: int, writing: int | None, extent: tuple[int, int], digest: blake3, buffer: memoryview, progress: Progress
) -> None:
    at, end = extent
    while at < end:
        got = os.preadv(reading, [buffer[: min(BLOCK, end - at)]], at)
        if not got:
            raise HostFailure("the file became shorter while it was being read")
        block = buffer[:got]
        digest.update(block)
        if writing is not None:
            _write_all(writing, block, at)
        at += got
        progress(got)


def _write_all(writing: int, block: memoryview, at: int) -> None:
    while block:
        wrote = os.pwrite(writing, block, at)
        block, at = block[wrote:], at + wrote


def _digest_zeros(digest: blake3, length: int) -> None:
    while length:
        step = min(length, BLOCK)
        digest.update(_ZEROS[:step])
        length -= step


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
