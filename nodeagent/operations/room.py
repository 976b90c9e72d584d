"""Room: whether retain, backup and RAM disk can take a backup, asked before anything is touched.

Called by the survey.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, open_folder
from nodeagent.order import Order
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused

_MARGIN = 1.05
_PLAIN = Access(mode=0o600)


def require_same_filesystem(order: Order, roots: Sequence[str]) -> None:
    """Images are renamed into retain, so both must lie on one filesystem."""
    with open_folder(PurePosixPath(order.retain_root), roots) as retain:
        for disk in order.disks:
            if _device(PurePosixPath(disk.path).parent, roots) != retain.device:
                raise Refused(
                    ReturnValue.CANNOT_RENAME_IMAGE,
                    f"{order.machine}: the image {disk.path} and sstBackupRetainDirectory {order.retain_root} "
                    "lie on different filesystems; name a retain directory on the images' own",
                )


def require_room(order: Order, roots: Sequence[str], memory: int) -> None:
    """(allocation of the disks + memory) × 1.05 must fit retain and the backup root."""
    needed = sum(_allocated(disk.path, roots) for disk in order.disks) + memory
    for path in (order.retain_root, order.backup_root):
        require_free(order, roots, path, needed)


def choose_ram_disk(order: Order, ram_disk: str | None, roots: Sequence[str], memory: int) -> tuple[str | None, str]:
    """The directory to save memory to, and a warning where it cannot be the one the plan names."""
    if ram_disk is None or memory == 0:
        return None, ""
    try:
        with open_folder(PurePosixPath(ram_disk), roots) as folder:
            folder.write(f".{order.machine}.{order.timestamp}.probe", b"", _PLAIN)
            folder.remove(f".{order.machine}.{order.timestamp}.probe")
            free = folder.free_bytes()
    except (HostFailure, OSError) as why:
        return None, not_on_ram_disk(ram_disk, why)
    if free < memory * _MARGIN:
        return None, f"RAM disk {ram_disk} has only {free} bytes free; the memory was saved to the retain directory"
    return ram_disk, ""


def not_on_ram_disk(ram_disk: object, why: Exception) -> str:
    """What an admin is told where the memory could not go to the RAM disk."""
    return f"RAM disk {ram_disk} cannot be used ({why}); the memory was saved to the retain directory"


def require_free(order: Order, roots: Sequence[str], path: str, needed: int) -> None:
    """So many bytes × 1.05 must fit a directory."""
    wanted, free = int(needed * _MARGIN), _free(order.machine, path, roots)
    if free < wanted:
        raise Refused(
            ReturnValue.NOT_ENOUGH_SPACE,
            f"{order.machine}: {path} has {free} bytes free and {wanted} are needed; "
            "make room or name another directory",
        )


def _allocated(path: str, roots: Sequence[str]) -> int:
    image = PurePosixPath(path)
    with open_folder(image.parent, roots) as folder:
        return folder.allocated(image.name)


def _device(path: PurePosixPath, roots: Sequence[str]) -> int:
    """The filesystem a directory lies on, or will once it is made."""
    try:
        with open_folder(path, roots) as folder:
            return folder.device
    except FileNotFoundError:
        return _device(path.parent, roots)


def _free(machine: str, path: str, roots: Sequence[str]) -> int:
    try:
        with open_folder(PurePosixPath(path), roots) as folder:
            return folder.free_bytes()
    except OSError as why:
        raise Refused(
            ReturnValue.NO_SPACE_INFORMATION, f"{machine}: {path} does not say how much is free: {why}"
        ) from None
