"""What a copy leaves behind it in memory: written to the disk in steps while it goes, and then dropped.

Called by the copy engine. A guest beside it keeps its page cache, little waits for the last fsync, and a copy that is
told to stop has not to wait for gigabytes on their way to the disk.
"""

import ctypes
import errno
import os

_STEP = 8 << 20
_BEGIN = 2  # SYNC_FILE_RANGE_WRITE
_FINISH = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP)
_libc = ctypes.CDLL(None, use_errno=True)


class Trail:
    """One copy's way through a file: step by step the last one is begun to be written, the one before it is dropped."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._begun = 0
        self._finished = 0

    def reached(self, at: int) -> None:
        """Everything before this place has been copied. OSError where the disk failed: fsync would not say it again."""
        if at - self._begun < _STEP:
            return
        _sync_range(self._writing, self._begun, at, _BEGIN)
        if self._begun > self._finished:
            self._drop(self._finished, self._begun)
        self._finished, self._begun = self._begun, at

    def _drop(self, start: int, end: int) -> None:
        _sync_range(self._writing, start, end, _FINISH)
        for descriptor in (self._reading, self._writing):
            os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)


def _sync_range(descriptor: int, start: int, end: int, how: int) -> None:
    """Where a filesystem does not know this, the fsync at the end does everything."""
    failed = _libc.sync_file_range(descriptor, ctypes.c_int64(start), ctypes.c_int64(end - start), ctypes.c_uint(how))
    number = ctypes.get_errno()
    if failed and number not in _UNKNOWN:
        raise OSError(number, os.strerror(number))
