"""Where a backup lies: retain and backup directories, and the name of every file of a set.

    <retain>/<vmtype>/<storage pool>/<machine>/<timestamp>/<file>
    <root>/<vmtype>/<storage pool>/<machine>/<timestamp>/<file>.<timestamp>

Used by the agent to place files and by the manifest's readers to find them. Pure: looks at no disk.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import check_name, check_target
from vmkeep.contract.timestamps import from_timestamp

MACHINE_TYPES = ("vm-persistent", "vm-templates", "vm-dynamic")
STAND_IN_STATE = "Machine is not runnung, no state file"  # the typo is the format
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class SetPaths:
    """The two directories of one machine's backup and its file names. `disks` are (target, file name in retain)."""

    retain_root: PurePosixPath
    backup_root: PurePosixPath
    parts: tuple[str, str]
    machine: str
    timestamp: str
    disks: tuple[tuple[str, str], ...]

    @property
    def retain(self) -> PurePosixPath:
        """The directory of this backup in the making."""
        return self._below(self.retain_root)

    @property
    def backup(self) -> PurePosixPath:
        """The directory of the finished set."""
        return self._below(self.backup_root)

    @property
    def state(self) -> str:
        """File name of the saved memory, or its stand-in."""
        return f"{self.machine}.state"

    @property
    def xml(self) -> str:
        """File name of the libvirt description."""
        return f"{self.machine}.xml"

    @property
    def ldif(self) -> str:
        """File name of the directory entry."""
        return f"{self.machine}.ldif"

    @property
    def nvram(self) -> str:
        """File name of the firmware's variables."""
        return f"{self.machine}.nvram"

    @property
    def tpm(self) -> str:
        """File name of the virtual TPM's permanent state."""
        return f"{self.machine}.tpm"

    def disk(self, target: str) -> str:
        """File name of one disk's image."""
        return dict(self.disks)[target]

    def kept_name(self, name: str) -> str:
        """A file's name in the backup directory."""
        return f"{name}.{self.timestamp}"

    def _below(self, root: PurePosixPath) -> PurePosixPath:
        return root.joinpath(*self.parts, self.machine, self.timestamp)


def set_paths(
    machine: str,
    timestamp: str,
    disks: Sequence[tuple[str, str]],
    roots: tuple[str, str],
    image_roots: Sequence[str],
) -> SetPaths:
    """Lay out one backup.

    `disks` are (target, absolute image path) in the machine's order, `roots` (retain, backup).
    """
    check_name(machine)
    from_timestamp(timestamp)
    if not disks:
        raise Refused(ReturnValue.INCONSISTENT_DISKS, f"{machine}: the machine has no disk that could be backed up")
    parts = path_parts(machine, disks[0][1], image_roots)
    return SetPaths(
        PurePosixPath(roots[0]),
        PurePosixPath(roots[1]),
        parts,
        machine,
        timestamp,
        tuple(_distinct_names(machine, disks).items()),
    )


def path_parts(machine: str, image: str, image_roots: Sequence[str]) -> tuple[str, str]:
    """(vmtype, storage pool): the two parts of the first disk's path below an image root."""
    path = PurePosixPath(image)
    for root in image_roots:
        if path.is_relative_to(root):
            below = path.relative_to(root).parts
            if len(below) >= 3 and below[0] in MACHINE_TYPES and ".." not in below:
                return below[0], below[1]
    raise Refused(
        ReturnValue.PATH_NOT_ALLOWED,
        f"{machine}: the image {image} does not lie at <image root>/<{'|'.join(MACHINE_TYPES)}>/<storage pool>/…; "
        f"image roots here: {', '.join(image_roots)} (image_roots in the agent's settings)",
    )


def _distinct_names(machine: str, disks: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Basenames where they are unique among all names of the set, else with the target in front."""
    taken = Counter(PurePosixPath(path).name for _, path in disks)
    taken.update(f"{machine}.{suffix}" for suffix in ("state", "xml", "ldif", "nvram", "tpm"))
    taken.update([MANIFEST_NAME])
    names: dict[str, str] = {}
    for target, path in disks:
        basename = PurePosixPath(path).name
        names[check_target(machine, target)] = basename if taken[basename] == 1 else f"{target}.{basename}"
    if len(set(names.values())) != len(names) or any(taken[name] > 1 for name in names.values()):
        raise Refused(
            ReturnValue.UNSUPPORTED_PARAMETER, f"{machine}: disk images cannot be told apart by name: {names}"
        )
    return names
