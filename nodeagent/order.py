"""What one operation is to do, decided once and persisted before anything is touched.

Surveyed from directory, libvirt and filesystem (`operations.survey`), kept as the journal's first line; recovery goes
by it, whatever the directory says by then. Paths absolute, sizes in bytes, bandwidth in MiB/s.
"""

from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict

from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode
from vmkeep.contract.paths import SetPaths, set_paths


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ownership(_Frozen):
    """Owner, group and mode to give; None leaves what the system gives."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


class OrderDisk(_Frozen):
    """One disk: its image's path now, its file name in the set, its virtual size."""

    target: str
    path: str
    kept: str
    size: int = 0


class Firmware(_Frozen):
    """One small file beside the disks that belongs to the machine's instant."""

    role: str
    path: str
    kept: str


class Order(_Frozen):
    """One operation on one machine."""

    leaf_dn: str
    machine: str
    timestamp: str
    mode: Mode
    uuid: str
    power: Power
    disks: tuple[OrderDisk, ...]
    firmware: tuple[Firmware, ...] = ()
    retain_root: str
    backup_root: str
    image_roots: tuple[str, ...]
    ram_disk: str | None = None
    files: Ownership = Ownership()
    directories: Ownership = Ownership()
    bandwidth: int = 0
    iterations: int = 1
    protected: tuple[str, ...] = ()
    published: bool = False
    bytes_total: int = 0
    started_at: float = 0.0
    ldif: str = ""
    warning: str = ""

    @property
    def paths(self) -> SetPaths:
        """Where the set lies, in retain and in the backup directory."""
        disks = [(disk.target, disk.path) for disk in self.disks]
        return set_paths(self.machine, self.timestamp, disks, (self.retain_root, self.backup_root), self.image_roots)

    @property
    def state_candidates(self) -> tuple[PurePosixPath, ...]:
        """Where the memory may be saved, the fast place first."""
        in_retain = self.paths.retain / self.paths.state
        if self.ram_disk is None:
            return (in_retain,)
        return (PurePosixPath(self.ram_disk) / f"{self.paths.state}.{self.timestamp}", in_retain)
