"""The one door to qemu-img, and what image headers say. Formats are always given, never probed."""

import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import PurePath

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Folder
from nodeagent.host.programs import run
from nodeagent.host.qcow2 import Header, is_begun, read_header

FORMAT = "qcow2"
_FASTEST = 10**15  # bytes a second; QEMU refuses more
_LEAKS = 3  # clusters nobody uses: room lost, no data
_LOCK = struct.Struct("hhqqi4x")  # struct flock
_OFD_GETLK = 36
# The bytes whose locks QEMU says with what it does to an image: a hundred for that, a hundred for what nobody else may.
_FIRST_LOCK, _LOCKS = 100, 200
_WRITES = _FIRST_LOCK + 1


@dataclass(frozen=True)
class Images:
    """Verbs on disk images. `quick_seconds` bounds what touches metadata only, `long_seconds` what moves data."""

    quick_seconds: float = 60.0
    long_seconds: float = 24 * 3600.0

    def header(self, folder: Folder, name: str) -> Header:
        """What an image says of itself; also while QEMU has it open."""
        with folder.opened(name) as descriptor:
            return read_header(descriptor, str(folder.path / name))

    def may_hold_data(self, folder: Folder, name: str) -> bool:
        """Whether anything was ever written to an image; not to one whose making was cut short."""
        with folder.opened(name) as descriptor:
            return is_begun(descriptor) and not read_header(descriptor, str(folder.path / name)).is_empty

    def is_open(self, folder: Folder, name: str) -> bool:
        """Whether QEMU, or one of its tools, has an image open: it holds locks then, whatever libvirt knows."""
        return _is_locked(folder, name, _FIRST_LOCK, _LOCKS)

    def is_written(self, folder: Folder, name: str) -> bool:
        """Whether one of them may write to it; who reads it alone, or as what an overlay lies over, does not count."""
        return _is_locked(folder, name, _WRITES, 1)

    def create_overlay(self, path: PurePath, backing: PurePath, size: int) -> None:
        """An empty image over a backing file that may not bear that name yet. `size` in bytes."""
        arguments = ["create", "-q", "-f", FORMAT, "-u", "-b", str(backing), "-F", FORMAT, str(path), str(size)]
        run("qemu-img", arguments, self.quick_seconds)

    def flatten(self, path: PurePath, bandwidth: int = 0) -> None:
        """Make an image whole that nobody has open: its backing file is read into it and named no more.

        Bandwidth in MiB/s, 0 for unlimited.
        """
        image = _slowed(path, bandwidth) if bandwidth else ["-f", FORMAT, str(path)]
        run("qemu-img", ["rebase", "-q", "-b", "", *image], self.long_seconds)

    def relink(self, path: PurePath, backing: PurePath) -> None:
        """Name the backing file again of an image that nobody has open and that lost it before it was whole."""
        arguments = ["rebase", "-q", "-u", "-f", FORMAT, "-b", str(backing), "-F", FORMAT, str(path)]
        run("qemu-img", arguments, self.quick_seconds)

    def commit(self, overlay: PurePath, bandwidth: int = 0) -> None:
        """Write an overlay that nobody has open back into the image below it. Bandwidth in MiB/s, 0 for unlimited."""
        pace = ["-r", str(bandwidth << 20)] if bandwidth else []
        run("qemu-img", ["commit", "-q", "-f", FORMAT, *pace, str(overlay)], self.long_seconds)

    def check(self, path: PurePath) -> None:
        """HostFailure where an image that nobody has open is damaged."""
        try:
            run("qemu-img", ["check", "-q", "-f", FORMAT, str(path)], self.long_seconds, well=(0, _LEAKS))
        except HostFailure as why:
            raise HostFailure(f"the image is damaged: {why}") from why


def _is_locked(folder: Folder, name: str, first: int, count: int) -> bool:
    with folder.opened(name) as descriptor:
        asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, first, count, 0)
        found, *_ = _LOCK.unpack(fcntl.fcntl(descriptor, _OFD_GETLK, asked))
    return bool(found != fcntl.F_UNLCK)


def _slowed(path: PurePath, bandwidth: int) -> list[str]:
    """An image that takes no more than so much a second, for a verb of qemu-img that knows no limit of its own."""
    file = str(path).replace(",", ",,")
    throttled = f"driver={FORMAT},file.driver=throttle,file.throttle-group=pace,file.file.driver=file"
    group = f"throttle-group,id=pace,x-bps-write={min(bandwidth << 20, _FASTEST)}"
    return ["--object", group, "--image-opts", f"{throttled},file.file.filename={file}"]
