"""Filesystems in a file: ext4 or XFS, with what is written to the device counted.

Used by tests and benchmarks that need another filesystem, a small one, one that clones, or the truth about bytes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import mounts, programs

_SECTOR = 512  # the unit of /sys/block/*/stat
_SECTORS_WRITTEN = 6
# Nothing is left to be initialized later: it would be counted.
_MAKING = {
    "ext4": ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["-q", "-f"],
}


def is_known(kind: str) -> bool:
    """Whether this kernel has a filesystem."""
    return any(line.split()[-1] == kind for line in Path("/proc/filesystems").read_text().splitlines())


@dataclass(frozen=True)
class Filesystem:
    """A mounted filesystem on a loop device."""

    folder: Path
    device: str

    def written(self) -> int:
        """Bytes that have reached the device, after everything was written back."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        programs.run(["sync", "--file-system", self.folder], limit=300)
        fields = Path(f"/sys/block/{Path(self.device).name}/stat").read_text().split()
        return int(fields[_SECTORS_WRITTEN]) * _SECTOR


def mount_in_file(folder: Path, mib: int, kind: str) -> None:
    """Mount an empty filesystem on a folder; its device goes with the mount, its file `folder`.`kind` stays."""
    file = _made_file(folder, mib, kind)
    programs.run(["mount", "-t", kind, "-o", "loop,noatime", file, folder])


@contextmanager
def own_filesystem(folder: Path, mib: int, kind: str = "ext4") -> Iterator[Filesystem]:
    """An empty filesystem of `mib` MiB at `folder`; device, mount and file are gone afterwards, whatever happened."""
    file = _file_of(folder, kind)
    folder.mkdir()
    try:
        _made_file(folder, mib, kind)
        device = programs.run(["losetup", "--find", "--show", "--direct-io=on", file]).strip()
        programs.run(["mount", "-t", kind, "-o", "noatime", device, folder])
        yield Filesystem(folder, device)
    finally:
        mounts.unmount_below(folder)
        _detach(file)
        file.unlink(missing_ok=True)
        folder.rmdir()


def _file_of(folder: Path, kind: str) -> Path:
    # Added, not put in the place of a suffix: folders have names of nodes, with dots.
    return folder.with_name(f"{folder.name}.{kind}")


def _made_file(folder: Path, mib: int, kind: str) -> Path:
    file = _file_of(folder, kind)
    with file.open("wb") as out:
        out.truncate(mib << 20)
    programs.run([f"mkfs.{kind}", *_MAKING[kind], file], limit=120)
    return file


def _detach(file: Path) -> None:
    """Asked of the kernel: an interruption may have come before anybody was told the device's name."""
    for line in programs.run(["losetup", "--associated", file]).splitlines():
        programs.run(["losetup", "--detach", line.partition(":")[0]])
