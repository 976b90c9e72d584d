"""Notices whether anybody opens, reads, writes, changes or removes what lies in a directory: the kernel's own word."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_EVENT = struct.Struct("iIII")
_KINDS = {
    0x1: "read", 0x2: "written", 0x4: "its owner or mode changed", 0x20: "opened", 0x40: "moved away",
    0x80: "moved here", 0x100: "made", 0x200: "removed", 0x400: "itself removed",
}  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)


class Watched:
    """What became of some directories and the files in them since the watch began."""

    def __init__(self, descriptor: int, paths: dict[int, Path]) -> None:
        self._descriptor = descriptor
        self._paths = paths

    def events(self) -> set[str]:
        """Each thing that was done, once, in words."""
        found, data = set(), b""
        while True:
            try:
                data = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0").decode()
                at += _EVENT.size + length
                found |= {f"{self._paths[number] / name} {said}" for bit, said in _KINDS.items() if mask & bit}


@contextmanager
def watched(*directories: Path) -> Iterator[Watched]:
    """Watch these directories, not what lies deeper."""
    descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    try:
        paths = {}
        for directory in directories:
            number = _libc.inotify_add_watch(descriptor, os.fsencode(directory), sum(_KINDS))
            assert number >= 0, os.strerror(ctypes.get_errno())
            paths[number] = directory
        yield Watched(descriptor, paths)
    finally:
        os.close(descriptor)
