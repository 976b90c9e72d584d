"""What one operation is to do, decided once and persisted before anything is touched.

Surveyed from directory, libvirt and filesystem (`operations.survey`), kept as the journal's first line; recovery goes
by it, whatever the directory says by then. Paths absolute, sizes in bytes, bandwidths in MiB/s.
"""

from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import Power
from vmkeep.contract.manifest import Role
from vmkeep.contract.methods import Method, Route
from vmkeep.contract.modes import Mode
from vmkeep.contract.paths import SetPaths


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ownership(_Frozen):
    """Owner, group and mode to give; None leaves what the system gives."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


class OrderDisk(_Frozen):
    """One disk: its image's path now, its file name in the set, its virtual size. `inode`: of one waiting in retain."""

    target: str
    path: str
    kept: str
    size: int = 0
    inode: int = 0


class Firmware(_Frozen):
    """One small file beside the disks that belongs to the machine's instant."""

    role: str
    path: str
    kept: str


class SavedFile(_Frozen):
    """One file of a set that is restored: its names in the set and in retain, size in bytes, digest of the manifest."""

    role: Role
    name: str
    kept: str
    size: int
    digest: str
    target: str | None = None
    original_path: str | None = None


class Restoring(_Frozen):
    """What a restore goes by: the set, and what the machine is to become.

    `xml` and `ldif` are the texts as checked, `old_xml` the machine's definition before ("": libvirt knew none).
    `conflicts` is JSON, `report` the same for people. `state_file` is the name of the memory in retain, "" where the
    machine does without; `starts` says whether it is started then. `alone` means single disks of a machine that is off.
    """

    set_directory: str
    files: tuple[SavedFile, ...] = ()
    xml: str = ""
    ldif: str = ""
    old_xml: str = ""
    conflicts: str = ""
    report: str = ""
    state_file: str = ""
    starts: bool = False
    becomes: Power = Power.OFF
    alone: bool = False


class Order(_Frozen):
    """One operation on one machine. `place` is (vmtype, storage pool), the two directories above the machine's.

    `abandoned` are other backups of the machine in retain that nobody can finish, `unnoted` those that ended at the
    snapshot, which may not have come as far as its notes. `unmade` says why no set can be made any more of what a
    snapshot left, "" where it can. `deadline`: seconds it may stand without a sign of life (0: not known).
    `start_wait`: seconds that a saved machine may wait for others of its group to run on, None where nobody asks for an
    order. `peculiar` is all that the description of a machine that is to be saved may name
    (`restoring.allowed.peculiarities`), None where none is.
    """

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
    place: tuple[str, str]
    ram_disk: str | None = None
    files: Ownership = Ownership()
    directories: Ownership = Ownership()
    bandwidth: int = 0
    bandwidth_copy: int = 0
    published: bool = False
    bytes_total: int = 0
    started_at: float = 0.0
    deadline: int = 0
    node: str = ""
    boot: str = ""
    ldif: str = ""
    warning: str = ""
    method: Method = Method.SAVE
    route: Route = Route(freezes=False, clones=False, once=False)
    unmade: str = ""
    abandoned: tuple[str, ...] = ()
    unnoted: tuple[str, ...] = ()
    overlay_limit: int = 0
    start_wait: int | None = None
    freeze_seconds: int = 10
    restoring: Restoring | None = None
    peculiar: tuple[str, ...] | None = None

    @property
    def paths(self) -> SetPaths:
        """Where the set lies, in retain and in the backup directory."""
        return SetPaths(
            PurePosixPath(self.retain_root),
            PurePosixPath(self.backup_root),
            self.place,
            self.machine,
            self.timestamp,
            tuple((disk.target, disk.kept) for disk in self.disks),
        )

    @property
    def set(self) -> Restoring:
        """What a restore goes by; only orders of a restore have it."""
        assert self.restoring is not None, f"{self.mode} restores nothing"
        return self.restoring

    @property
    def bandwidth_off(self) -> int:
        """As `bandwidth`, of a machine that is off. Only of a merge: after anything else it may be about to start."""
        return self.bandwidth if self.mode is Mode.MERGING else 0

    @property
    def has_memory(self) -> bool:
        """Whether the set holds the machine's memory."""
        return self.power is not Power.OFF and self.method is not Method.DISK

    @property
    def state_candidates(self) -> tuple[PurePosixPath, ...]:
        """Where the memory may be saved, the fast place first."""
        in_retain = self.paths.retain / self.paths.state
        if self.ram_disk is None:
            return (in_retain,)
        return (PurePosixPath(self.ram_disk) / f"{self.paths.state}.{self.timestamp}", in_retain)

    @property
    def started_by_another(self) -> Refused:
        """What to say where the machine that was being saved runs all the same."""
        return Refused(
            ReturnValue.WRONG_STATE_INFORMATION,
            f"{self.machine} was started by somebody else while it was being saved; it is left as it runs now",
        )
