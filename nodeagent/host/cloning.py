"""Clones: a file's second life on the same blocks, made in no time at any size, where the filesystem shares blocks.

Called by the operations instead of a copy. XFS and Btrfs can; whether a pair of directories can is tried, not guessed:
subvolumes differ in their device number and can, an old XFS does not and cannot.
"""

import errno
import fcntl
import os

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, Folder

_FICLONE = 0x40049409
_CANNOT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM)
_BLOCK = bytes(4096)
_known: dict[tuple[object, object], bool] = {}


def clone_file(source: tuple[Folder, str], target: tuple[Folder, str], access: Access) -> None:
    """Clone one file under a partial name, make it durable, then give it its name. Never over an existing file.

    HostFailure where the filesystem cannot; nothing is left of the attempt.
    """
    (from_folder, from_name), (to_folder, to_name) = source, target
    with from_folder.opened(from_name) as reading, to_folder.making(to_name) as writing:
        access.apply(writing)
        try:
            fcntl.ioctl(writing, _FICLONE, reading)
        except OSError as why:
            if why.errno not in _CANNOT:
                raise
            raise HostFailure(
                f"{from_folder.path / from_name} cannot be cloned to {to_folder.path}: {why.strerror}; it can be copied"
            ) from None


def can_clone(source: Folder, target: Folder) -> bool:
    """Whether files of one directory can be cloned into another; found out once for each pair of filesystems."""
    pair = (source.filesystem, target.filesystem)
    if pair not in _known:
        answer = _try(source, target)
        if answer is None:
            return False
        _known[pair] = answer
    return _known[pair]


def _try(source: Folder, target: Folder) -> bool | None:
    """None where it could not be found out: a full disk says nothing of tomorrow."""
    try:
        with source.nameless() as reading, target.nameless() as writing:
            os.write(reading, _BLOCK)
            fcntl.ioctl(writing, _FICLONE, reading)
    except OSError as why:
        return False if why.errno in _CANNOT else None
    return True
